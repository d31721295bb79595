"""What a piece of long work is told about where it runs."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Job:
    """fingerprint: of everything that decides the result. work: the folder for checkpoints, kept
    between tries. out: the folder for final files. workers: processes that decode images.
    checkpoint_minutes: the longest stretch of training that a kill can cost."""

    fingerprint: str
    work: Path
    out: Path
    device: torch.device
    seed: int
    workers: int = 2
    checkpoint_minutes: float = 15.0
