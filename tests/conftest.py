"""Fixtures for all tests. They use neither the network nor files outside tmp_path."""

import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from salmask.data import manifest
from salmask.data.manifest import Manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.job import Job

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in xdist's workers and their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile(
    "suite",
    deadline=None,
    max_examples=int(os.environ.get("SALMASK_EXAMPLES", "40")),
    derandomize=True,
    database=None,
)
settings.load_profile("suite")

CPU = torch.device("cpu")
Labelled = tuple[np.ndarray, int, str]  # image (H,W,3) uint8, label, split


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that parallel processes end at about the same time.

    The first tests of additions make the project that most pipeline tests use. Meanwhile another
    process runs those that do not use it.
    """
    first = ["slurm", "test_additions.py", "test_pretended_device.py", "test_resume.py", "pipeline"]

    def order(item: pytest.Item) -> int:
        names = {item.path.name, item.path.parent.name}
        return next((i for i, name in enumerate(first) if name in names), len(first))

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes tests file by file. The tests of jobs stay in two processes: in each, they share
    a cluster. They mostly wait, so the two need less than one core."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder, _, name = file.rpartition("/")
            if folder == "tests/slurm":
                return "jobs, first half" if name < "test_m" else "jobs, second half"
            return file

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes file names that are not UTF-8 in captured output: xdist cannot send them."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of a test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job on the CPU that decodes in its own process."""
    return Job("f" * 12, tmp_path / "work", tmp_path / "out", CPU, seed=0, workers=0)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[[list[Labelled]], Manifest]:
    """Writes images as PNG files and the manifest over them."""

    def make(images: list[Labelled], classes: tuple[str, ...] = ("a", "b")) -> Manifest:
        folder = tmp_path / "data"
        files = []
        (folder / "images").mkdir(parents=True)
        for index, (pixels, label, split) in enumerate(images):
            name = f"{index:03d}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            files.append(ListedFile(name, label, split))
        write_manifest(Listing(folder / "images", classes, files), "toy", folder, 0)
        return manifest.load(folder)

    return make
