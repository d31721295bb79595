"""Checkpoints that survive whatever kills the process while one is being written."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)
KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `state` as the checkpoint of a global step; keeps the newest two.

    To a temporary file, flushed to the disk, then renamed: a checkpoint is whole or not there.
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
        partial.unlink(missing_ok=True)  # a full disk needs the room, if only to say so in a log
    for old in saved(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def saved(folder: Path) -> list[Path]:
    """The checkpoints there are, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def load_newest(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None. One that cannot is passed over, said so.

    Raises ValueError for a checkpoint of another fingerprint: it belongs to another run.
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
