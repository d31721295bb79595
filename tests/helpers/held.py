"""The stage pretrain, which stops where a test wants to hurt it. Run as a command, like the stage.

Files in the current folder decide: once the checkpoint of the step that `hold` names is written, it
waits until that is no longer said, or a signal asks it to stop. With `tear` there, it removes that
and dies half-way through writing the next checkpoint. `starts` gains the step of each start.
"""

import functools
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from salmask.job import Job
from salmask.train import checkpoint
from salmask.train import pretrain as loop
from stages import pretrain


def work(job: Job, **arguments: Any) -> None:
    checkpoint.save = _hold(checkpoint.save)
    checkpoint.load_newest = _note(checkpoint.load_newest)
    torch.save = _tear(torch.save)
    loop.pretrain(job=job, **arguments)


def _hold(save: Callable[..., Path]) -> Callable[..., Path]:
    @functools.wraps(save)
    def saved(folder: Path, step: int, state: dict[str, Any]) -> Path:
        path = save(folder, step, state)
        handler: Any = signal.getsignal(signal.SIGTERM)  # a method of the loop's StopSignal
        while Path("hold").read_text() == str(step) and not handler.__self__.asked:
            time.sleep(0.02)
        return path

    return saved


def _note(load: Callable[..., dict[str, Any] | None]) -> Callable[..., dict[str, Any] | None]:
    @functools.wraps(load)
    def loaded(*arguments: Any) -> dict[str, Any] | None:
        state = load(*arguments)
        with Path("starts").open("a") as stream:
            stream.write(f"{state['step'] if state else 0}\n")
        return state

    return loaded


def _tear(save: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save)
    def saved(state: object, stream: BinaryIO) -> None:
        if not Path("tear").exists():
            return save(state, stream)
        Path("tear").unlink()
        whole = io.BytesIO()
        save(state, whole)
        stream.write(whole.getvalue()[: whole.tell() // 2])
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    return saved


if __name__ == "__main__":
    pretrain.work = work
    pretrain.main()
