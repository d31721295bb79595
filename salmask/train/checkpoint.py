"""Checkpoints. A process that is killed while it writes one does not damage the others."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

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
