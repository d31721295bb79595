"""A Slurm cluster on this machine: one for all tests, and separate ones for tests that break it."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.project import TINY, Project

SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster.sh"


class Cluster:
    """A running cluster.

    Args:
        conf: the path of its slurm.conf.
    """

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.env = outside | {"SLURM_CONF": str(conf)}

    def run(self, *command: str) -> str:
        """Runs a command and returns its output. Raises an error if it fails."""
        done = subprocess.run(
            command, env=self.env, text=True, stdout=subprocess.PIPE, timeout=60, check=True
        )
        return done.stdout.strip()

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Calls testcluster.sh for this cluster: `cluster.script("node-down", "n2")`."""
        command = [str(SCRIPT), *arguments, "--dir", str(self.conf.parent)]
        return subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=120)

    def submit(self, script: str, *options: str) -> str:
        """Submits the lines of a shell script, without a log. Returns the job's id."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script)

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Reason, Restarts, ExitCode, ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", job)))

    def wait(self, job: str, *states: str, seconds: float = 30) -> dict[str, str]:
        """Waits until the job is in one of the states, and returns its fields."""
        end = time.monotonic() + seconds
        while (fields := self.job(job))["JobState"] not in states:
            assert time.monotonic() < end, f"job {job} is not {' or '.join(states)}: {fields}"
            time.sleep(0.1)
        return fields


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Adds the ends of the clusters' logs to the report of a failed test, for CI."""
    report = yield
    if report.failed and call.excinfo:
        for log in sorted(Path("/tmp").glob("salmask-slurm-*/cluster/log/*.log")):
            report.sections.append((f"the end of {log.name}", _last_lines(log)))
    return report


def _last_lines(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def running(*options: str) -> Iterator[Cluster]:
    """A cluster in a new folder. Skips the test if this machine lacks Slurm's packages."""
    # Not in tmp_path: the paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="salmask-slurm-", dir="/tmp"))
    cluster = Cluster(folder / "cluster" / "slurm.conf")
    try:
        up = cluster.script("up", *options)
        if up.returncode == 2:
            pytest.skip(" ".join(up.stderr.split()))
        assert up.returncode == 0, up.stderr
        yield cluster
    finally:
        down = cluster.script("down")
        assert down.returncode == 0, down.stderr
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for the session, or the one with the slurm.conf in SALMASK_TEST_SLURM_CONF."""
    if path := os.environ.get("SALMASK_TEST_SLURM_CONF"):
        yield Cluster(Path(path))
    else:
        with running() as started:
            yield started


@pytest.fixture(scope="session")
def accounting() -> Iterator[Cluster]:
    """A second cluster for the session, with a database for sacct."""
    with running("--accounting") as started:
        yield started


@pytest.fixture(scope="session")
def own_cluster() -> Callable[..., AbstractContextManager[Cluster]]:
    """A function that starts a separate cluster: `with own_cluster() as cluster:`"""
    return running


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny project with manifest, localizer and saliency. Do not change it."""
    project = Project(tmp_path_factory.mktemp("prepared"), TINY)
    for stage in ("code", "prepare", "localizer", "saliency"):
        project.stage(stage)
    shutil.rmtree(project.folder / "runs")
    return project.folder


@pytest.fixture(scope="session")
def copy_prepared(prepared: Path) -> Callable[[Path, dict[str, Any]], Project]:
    """`copy_prepared(folder, params)` copies the prepared project and writes params.yaml."""

    def copy(folder: Path, params: dict[str, Any]) -> Project:
        shutil.copytree(prepared, folder, symlinks=True, dirs_exist_ok=True)
        project = Project.at(folder)
        project.write_params(params)
        return project

    return copy
