"""Ends a stage with worker processes in many ways, and reports how. Run as a command.

`python -m tests.helpers.stage_ends FOLDER KIND...` prints a JSON object with one entry per kind:
the exit code (a negative number for a signal), the seconds from the event to the end, the number of
workers that ran five seconds later, and the output. One process imports torch, and forks itself for
each kind.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from salmask import stop_signals
from salmask.data import worker_processes
from salmask.job import Job
from salmask.train import checkpoint, engine
from slurm.errors import named_folder_errors
from stages.errors import Stage

LIMIT_SECONDS = 60.0
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
stop_signals._GRACE_SECONDS = 0.5


class Slow(Dataset[Tensor]):
    """Items that take no time, and from `blocked` on more than a test waits.

    Each worker writes a file with its process id as name.
    """

    def __init__(self, blocked: int, folder: Path) -> None:
        self.blocked, self.folder = blocked, folder

    def __getitem__(self, index: int) -> Tensor:
        (self.folder / f"{os.getpid()}.worker").touch()
        if index >= self.blocked:
            time.sleep(1000)
        return torch.full((200_000,), float(index))


def batches(blocked: int, folder: Path) -> Iterator[Tensor]:
    """Items of two workers."""
    options: dict[str, Any] = {"sampler": range(100_000), "batch_size": None, "batch_bytes": 1}
    return worker_processes.load_batches(Slow(blocked, folder), workers=2, **options)


def work(kind: str, folder: Path) -> None:
    """What the stage does: it waits for the event of its kind, or makes it."""
    if kind.startswith("training"):
        train(folder)
    items = batches(1 if kind.endswith("blocked") else 100_000, folder)
    next(items)
    if kind == "error":
        raise ZeroDivisionError
    if kind == "disk full":
        with named_folder_errors(folder):
            raise OSError(28, "No space left on device")
    if kind == "worker killed":
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    if kind == "shared memory full":
        kept = list(items)
        assert not kept
    for _ in items:
        time.sleep(0.01)


def train(folder: Path) -> None:
    """A training whose third batch never arrives, with a checkpoint at its end only."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def step(item: Tensor, number: int) -> dict[str, Tensor]:
        (folder / f"{number}.step").touch()
        return {"loss": model(item[:1]).square().sum().detach()}

    loop = engine.Loop(
        title="toy",
        steps=1000,
        state={"model": model},
        batches=lambda first: batches(2, folder),
        step=step,
        rate=lambda step: 1.0,
    )
    engine.train(loop, Job("f", folder / "work", folder, torch.device("cpu"), 0), folder / "work")


def start(kind: str, folder: Path) -> int:
    """Starts the stage of a kind in a process of its own. Returns its process id."""
    folder.mkdir()
    if pid := os.fork():
        return pid
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    Stage("stage", callback=lambda: work(kind, folder)).main([])
    raise AssertionError("a command ends its process")


def has_begun(kind: str, folder: Path) -> bool:
    """Whether both workers run, and a training has taken its two steps."""
    workers = len(list(folder.glob("*.worker"))) == 2
    return workers and (not kind.startswith("training") or (folder / "1.step").exists())


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a process; None if it runs for longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def running(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def result(kind: str, pid: int, folder: Path) -> dict[str, Any]:
    number = SIGNALS.get(kind.split(",")[0].removeprefix("training "))
    if number:
        os.kill(pid, number)
    began = time.monotonic()
    code = wait(pid, LIMIT_SECONDS)
    seconds = time.monotonic() - began
    workers = [int(path.stem) for path in folder.glob("*.worker")]
    end = time.monotonic() + 5
    while running(workers) and time.monotonic() < end:
        time.sleep(0.05)
    left = running(workers)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    steps = [path.name for path in checkpoint.saved(folder / "work")]
    output = (folder / "log").read_text()
    return {"code": code, "seconds": seconds, "left": len(left), "output": output, "saved": steps}


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    started = {kind: start(kind, root / kind) for kind in sys.argv[2:]}
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end and not all(
        has_ended(pid) or has_begun(kind, root / kind) for kind, pid in started.items()
    ):
        time.sleep(0.05)
    time.sleep(2)  # until the stages wait for the next batch
    ends = {kind: result(kind, pid, root / kind) for kind, pid in started.items()}
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
