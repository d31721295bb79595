"""Checkpoints. A process that is killed while it writes one does not damage the others.

A file is written by `torch.save`, and ends with the sha256 of the bytes before it. A file that does
not have its digest is damaged, and is never used.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from salmask.errors import UserError

log = logging.getLogger(__name__)
KEEP = 2
_BLOCK = 1 << 20  # bytes that are read at once


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `state` as the checkpoint of a global step, and removes all but it and the one before.

    Checkpoints of later steps are removed too: they were damaged, else they had been used. The file
    is written under another name, flushed to the disk, then renamed. Returns its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            hashed = _HashedStream(stream)
            torch.save(state, cast(BinaryIO, hashed))
            stream.write(hashed.sha.digest())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # on a full disk, logs need the space
    others = saved(folder)
    kept = others[others.index(path) :][:KEEP]
    for other in set(others) - set(kept):
        other.unlink(missing_ok=True)
    return path


class _HashedStream:
    """A stream for `torch.save` that computes the digest of what is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha = stream, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.sha.update(content)
        return self.stream.write(content)

    def flush(self) -> None:
        self.stream.flush()


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
    """The newest checkpoint that is not damaged, on the CPU, or None. Logs a warning for each
    damaged one, with the checkpoint that is used in its place.

    Raises UserError for a checkpoint of another fingerprint, which belongs to another run.
    """
    damaged: dict[Path, str] = {}
    for path in saved(folder):
        try:
            state = _read(path)
        except Exception as error:
            damaged[path] = str(error).partition("\n")[0]
            continue
        if state["fingerprint"] != fingerprint:
            raise UserError(
                f"{path} belongs to run {state['fingerprint']}, not {fingerprint}: remove the file "
                "and run the same command again"
            )
        _warn(damaged, f"{path.name}, the one before it, is used")
        return state
    _warn(damaged, "there is none before it, so the work starts anew")
    return None


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint. Raises ValueError if its digest is missing or wrong."""
    size = path.stat().st_size - hashlib.sha256().digest_size
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while size > 0 and (block := stream.read(min(size, _BLOCK))):
            sha.update(block)
            size -= len(block)
        if size or stream.read() != sha.digest():
            raise ValueError("its sha256 is missing or differs")
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _warn(damaged: Mapping[Path, str], consequence: str) -> None:
    for path, problem in damaged.items():
        log.warning("the checkpoint %s is damaged (%s); %s", path, problem, consequence)
