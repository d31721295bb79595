"""The stage pretrain, which pauses at a step that a test chooses. Run as a command, like the stage.

It writes each checkpoint before the next step. Files in the current folder control it. After the
checkpoint of the step in `pause_at`, it waits until that file changes or a stop signal arrives. If
`kill_while_saving` exists, it removes that file and kills itself half-way through the next
checkpoint. It appends the step of each start to `starts`.
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
from slurm import follow
from stages import pretrain

stage_work = pretrain.work


def work(job: Job, **arguments: Any) -> None:
    checkpoint.Writer.write = _waiting(checkpoint.Writer.write)
    checkpoint.save = _pausing(checkpoint.save)
    checkpoint.load_newest = _recording_start(checkpoint.load_newest)
    torch.save = _killing(torch.save)
    stage_work(job, **arguments)


def _waiting(write: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(write)
    def written(writer: checkpoint.Writer, *arguments: Any) -> None:
        write(writer, *arguments)
        writer.wait()

    return written


def _pausing(save: Callable[..., Path]) -> Callable[..., Path]:
    @functools.wraps(save)
    def saved(folder: Path, step: int, state: dict[str, Any]) -> Path:
        path = save(folder, step, state)
        handler: Any = signal.getsignal(signal.SIGTERM)  # a method of the loop's StopSignal
        while Path("pause_at").read_text() == str(step) and not handler.__self__.number:
            time.sleep(0.02)
        return path

    return saved


def _recording_start(
    load: Callable[..., dict[str, Any] | None],
) -> Callable[..., dict[str, Any] | None]:
    @functools.wraps(load)
    def loaded(*arguments: Any) -> dict[str, Any] | None:
        state = load(*arguments)
        with Path("starts").open("a") as stream:
            stream.write(f"{state['step'] if state else 0}\n")
        return state

    return loaded


def _killing(save: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save)
    def saved(state: object, stream: BinaryIO) -> None:
        if not Path("kill_while_saving").exists():
            return save(state, stream)
        Path("kill_while_saving").unlink()
        whole = io.BytesIO()
        save(state, whole)
        stream.write(whole.getvalue()[: whole.tell() // 2])
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    return saved


if __name__ == "__main__":
    follow._POLL_SECONDS, follow._STATUS_SECONDS = 0.2, 0.5  # to save time
    pretrain.work = work
    pretrain.main()
