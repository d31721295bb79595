"""Checkpoints. A process that is killed while it writes one does not damage the others."""

import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

log = logging.getLogger(__name__)
KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `state` as the checkpoint of a global step, and removes all but the newest two.

    The file is written under another name, flushed to the disk, then renamed. Returns its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # on a full disk, logs need the space
    for old in saved(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


class Writer:
    """Writes checkpoints in a thread, while the training continues.

    At most one checkpoint is written at a time. An error of the thread is raised by the next call,
    or at the end of the context, which waits for the thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Saves a copy of `state`, which is complete when this returns, as `save` does."""
        self.wait()
        content = tree_map(_host_copy, state)
        self.thread = threading.Thread(target=self._save, args=(step, content), name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Waits until the newest checkpoint is on the disk. Raises the error of the thread."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raises the error of the thread, if it has failed. Does not wait."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except BaseException as failure:
            if error is None:
                raise
            log.error("a checkpoint could not be written: %s", failure)

    def _save(self, step: int, state: dict[str, Any]) -> None:
        try:
            save(self.folder, step, state)
        except BaseException as error:
            self.error = error


def _host_copy(value: Any) -> Any:
    """A copy of a tensor in main memory; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.clone() if value.device.type == "cpu" else value.cpu()


def is_due(saved_at: float, minutes: float) -> bool:
    """Whether more than `minutes` have passed since `saved_at`, a time of `time.monotonic`."""
    return time.monotonic() - saved_at > 60 * minutes


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def load_newest(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The newest readable checkpoint, on the CPU, or None. Logs a warning for unreadable ones.

    Raises ValueError for a checkpoint of another fingerprint, which belongs to another run.
    """
    for path in saved(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            log.warning("%s cannot be read (%s); trying the one before it", path, error)
            continue
        if state["fingerprint"] != fingerprint:
            raise ValueError(f"{path} belongs to run {state['fingerprint']}, not {fingerprint}")
        return dict(state)
    return None
