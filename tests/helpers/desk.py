"""What a test sits at: a folder with a profile, launchers it starts and jobs it looks at."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from slurm.folder import read_job_json

ROOT = Path(__file__).parents[2]
TINY = {
    "executor": "slurm",
    "partition": "test",
    "cpus": 1,
    "mem_gb": 3,  # a first import of torch alone can take more than one
    "time_min": 5,
    "signal_seconds": 20,
    "environment": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
}


class Desk:
    """A folder of its own, with a profile, in which stages are launched."""

    def __init__(self, folder: Path, conf: str) -> None:
        self.folder, self.conf = folder, conf
        self.profile()

    def profile(self, **changes: object) -> None:
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(TINY | changes))

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Starts `python COMMAND` in a session of its own, its output in one pipe."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SALMASK_", "SLURM_"))}
        more = {"SLURM_CONF": self.conf, "SALMASK_CLUSTER": "cluster.yaml"}
        more |= {"PYTHONPATH": str(ROOT), "SALMASK_DEVICE": "cpu"}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=kept | more | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def toy(self, name: str, *options: str) -> subprocess.Popen[str]:
        return self.start(str(Path(__file__).with_name("toy.py")), "--name", name, *options)

    def ask(self, *arguments: str, code: int = 0) -> str:
        """What `python -m slurm` says."""
        return finished(self.start("-m", "slurm", *arguments), code)

    def run(self, name: str) -> Path:
        """The one run of that name."""
        (found,) = self.folder.glob(f"runs/*{name}-*")
        return found

    def job(self, name: str) -> str:
        return str(read_job_json(self.run(name)).get("job", ""))

    def count(self, name: str) -> int:
        """How far the toy has counted."""
        try:
            return int((self.run(name) / "work" / "count").read_text())
        except (ValueError, FileNotFoundError):
            return 0

    def starts(self, name: str) -> list[int]:
        """What each of the toy's starts counted from."""
        return [int(x) for x in (self.folder / "published" / name / "starts.txt").open()]

    def task(self, name: str) -> int:
        """The process id of the first task of a run's job."""
        folder = str(self.run(name) / "jobs")
        wanted = ["submitit.core._submit", folder]
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_text().split("\0")
                env = (place / "environ").read_text().split("\0")
            except OSError:
                continue
            here = words[0].endswith("python") and "SLURM_PROCID=0" in env
            if here and all(word in words for word in wanted):
                return int(place.name)
        raise AssertionError(f"no task of {name} runs")


def leftovers(folder: Path) -> list[str]:
    """What no run may leave behind in a project: processes that work there, temporary files and
    locks that somebody holds."""
    processes = [p for p in Path("/proc").glob("[0-9]*/cwd") if _leads_to(p, folder)]
    files = [p for where in ("runs", "artifacts") for p in (folder / where).rglob("*.partial")]
    locks = [p for p in folder.glob("runs/*/*lock*") if not _free(p)]
    return [str(p) for p in [*processes, *files, *locks]]


def _leads_to(link: Path, folder: Path) -> bool:
    try:
        return link.readlink() == folder
    except OSError:
        return False  # it has ended, or is another user's


def _free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def finished(process: subprocess.Popen[str], code: int = 0, seconds: float = 400) -> str:
    """All that a process said. Fails unless it ends with `code` in time."""
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"did not end within {seconds} s:\n{process.communicate()[0]}")
    assert process.returncode == code, said
    return said


def until(condition: Callable[[], object], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
