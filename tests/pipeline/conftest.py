"""A finished tiny project, which is built once and copied by each test that changes it."""

import copy
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.project import TINY, Project

SCENES = {
    "data": {
        "name": "demo", "root": "artifacts/code/demo.sha256", "side": 48,
        "images": {"train": 6, "test": 3},
    },
    "training": {
        "recipe": "coco_1x", "iterations": 3, "milestones": [2], "batch": 2, "lr": 0.01,
        "warmup": 1, "short_sides": [48], "test_short_side": 48, "anchors": [16, 32],
        "regions": 8, "pictures": 2, "precise_norm": 2,
    },
}  # fmt: skip
SHAPES = TINY["data"] | {"images": {"train": 40, "val": 20}, "first": 1000}
FINISHED = copy.deepcopy(TINY) | {"transfer": {"shapes": SHAPES}, "detect": {"scenes": SCENES}}
FINISHED["probe"] = {"every": 1, "images": 16}
FINISHED["evaluate"]["chosen"] = {
    "linear": ["plain"], "finetune": ["plain"], "transfer": ["plain"], "detect": ["plain"],
    "variance": ["blurred"], "variance_through": ["plain"],
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project after `dvc repro`, with every stage but imports. Do not change it.

    `imports.txt` lists the modules that each command imported (see helpers/import_trace).
    """
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):  # a process of xdist: all processes share one project
        shared = shared.parent
    folder = shared / "finished"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "dvc.lock").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            project = Project(folder, FINISHED)
            project.run("dvc", "repro", SALMASK_IMPORTS=str(shared / "imports.txt"))
            shutil.copy(shared / "imports.txt", folder / "imports.txt")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    """A copy of the finished project."""
    shutil.copytree(finished, tmp_path / "project", symlinks=True)
    return Project.at(tmp_path / "project")


@pytest.fixture(scope="module")
def copied(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """Makes further copies of the finished project, for fixtures of a module."""

    def make() -> Project:
        folder = tmp_path_factory.mktemp("copies") / "project"
        shutil.copytree(finished, folder, symlinks=True)
        return Project.at(folder)

    return make
