"""Where and how a piece of long work runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """The first argument of every long piece of work. It does not decide the result.

    Args:
        fingerprint: the hash of everything that decides the result.
        work: the folder for checkpoints, which is kept between attempts.
        out: the folder for final files.
        device: where tensors live.
        seed: the seed of the run.
        workers: the number of processes that decode images.
        checkpoint_minutes: the maximum time between two checkpoints of a training.
        features: the folder in which evaluations share features; None to keep them in memory.
    """

    fingerprint: str
    work: Path
    out: Path
    device: "torch.device"
    seed: int
    workers: int = 2
    checkpoint_minutes: float = 15.0
    features: Path | None = None
