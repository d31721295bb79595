"""A project folder with a cluster profile, in which tests launch stages and look at their jobs."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from slurm.folder import read_job_json

ROOT = Path(__file__).parents[2]
SMALL_PROFILE = {
    "executor": "slurm",
    "partition": "test",
    "cpus": 1,
    "mem_gb": 3,  # the first import of torch alone can use more than one
    "time_min": 5,
    "signal_seconds": 20,
    "environment": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
}


class Workspace:
    """A folder with a profile, in which stages are launched.

    Args:
        folder: an existing folder.
        conf: the path of the cluster's slurm.conf.
    """

    def __init__(self, folder: Path, conf: str) -> None:
        self.folder, self.conf = folder, conf
        self.write_profile()

    def write_profile(self, **changes: object) -> None:
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(SMALL_PROFILE | changes))

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Starts `python COMMAND` in a new session, with stdout and stderr in one pipe."""
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

    def start_counting(self, name: str, *options: str, **env: str) -> subprocess.Popen[str]:
        """Launches the stage tests/helpers/counting_stage.py."""
        script = Path(__file__).with_name("counting_stage.py")
        return self.start(str(script), "--name", name, *options, **env)

    def finish_counting(self) -> None:
        """Lets the counting stages of this folder finish now."""
        (self.folder / "finish_now").touch()

    def slurm_command(self, *arguments: str, code: int = 0) -> str:
        """The output of `python -m slurm ARGUMENTS`."""
        return output_of(self.start("-m", "slurm", *arguments), code)

    def run_folder(self, name: str) -> Path:
        """The folder of the only run of that name."""
        (folder,) = self.folder.glob(f"runs/*{name}-*")
        return folder

    def job_id(self, name: str) -> str:
        return str(read_job_json(self.run_folder(name)).get("job", ""))

    def counted(self, name: str) -> int:
        """The count that the counting stage has saved; 0 before the first."""
        try:
            return int((self.run_folder(name) / "work" / "count").read_text())
        except (ValueError, FileNotFoundError):
            return 0

    def start_counts(self, name: str) -> list[int]:
        """The count from which each start of the counting stage continued."""
        starts = self.folder / "published" / name / "starts.txt"
        return [int(line) for line in starts.read_text().splitlines()]

    def first_task_pid(self, name: str) -> int:
        """The process id of the first task of a run's Slurm job."""
        folder = str(self.run_folder(name) / "jobs")
        for process in psutil.process_iter():
            try:
                command, environment = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            is_python = bool(command) and command[0].endswith("python")
            is_task = is_python and {"submitit.core._submit", folder} <= set(command)
            if is_task and environment.get("SLURM_PROCID") == "0":
                return process.pid
        raise AssertionError(f"no task of {name} runs")


def leftovers(folder: Path) -> list[str]:
    """Processes that run in a project's folder, temporary files, and locks that are held."""
    processes = [p for p in Path("/proc").glob("[0-9]*/cwd") if _is_link_to(p, folder)]
    files = [p for part in ("runs", "artifacts") for p in (folder / part).rglob("*.partial")]
    locks = [p for p in folder.glob("runs/*/*lock*") if not _is_free(p)]
    return [str(p) for p in [*processes, *files, *locks]]


def _is_link_to(link: Path, folder: Path) -> bool:
    try:
        return link.readlink() == folder
    except OSError:
        return False  # the process has ended, or belongs to another user


def _is_free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def output_of(process: subprocess.Popen[str], code: int = 0, seconds: float = 400) -> str:
    """Waits for a process and returns its output. Fails unless it exits with `code` in time."""
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"did not end within {seconds} s:\n{process.communicate()[0]}")
    assert process.returncode == code, output
    return output


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Reads a process's output up to the first line with a text, and returns it."""
    assert process.stdout
    output = b""
    while byte := os.read(process.stdout.fileno(), 1):  # no buffer: `output_of` reads the rest
        output += byte
        if byte == b"\n" and text.encode() in output:
            return output.decode()
    pytest.fail(f"the process ended without printing {text!r}:\n{output.decode()}")


def wait_until(condition: Callable[[], object], seconds: float = 200) -> None:
    """Waits until the condition is true. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition was not true within {seconds} s"
        time.sleep(0.05)
