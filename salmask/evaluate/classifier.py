"""SGD of a classifier on augmented views (crop and flip): what linear and fine-tuning share.

Several processes share each batch and average their gradients: they learn what one alone would.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salmask.data.loader import Schedule, pairs
from salmask.data.manifest import Manifest
from salmask.distributed import all_reduce_mean, broadcast_from_first, rank, world_size
from salmask.errors import UserError
from salmask.evaluate.features import crop_and_flip
from salmask.files import write_rows
from salmask.job import Job
from salmask.progress import progress
from salmask.train import checkpoint

History = list[dict[str, Any]]
# What trained, the epoch from 1, the (last) classifier's rate at its end, the mean loss over it.
HISTORY = ("training", "epoch", "lr", "loss")


@dataclass(frozen=True)
class Course:
    """How long a classifier learns, and what becomes of its rates: `step` multiplies them by gamma
    at the start of every epoch in milestones, counted from 0; `cosine` brings them to 0, per step.
    images: `stream` from disk, or `resident` on the device."""

    batch: int
    epochs: int
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    images: str = "stream"

    def rate_share(self, epoch: int, step: int, steps: int) -> float:
        """The share of the first rate at a step of an epoch of `steps`."""
        if self.schedule == "step":
            return self.gamma ** bisect_right(self.milestones, epoch)
        done = (epoch * steps + step) / (self.epochs * steps)
        return 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    manifest: Manifest,
    ids: Tensor,
    side: int,
    course: Course,
    job: Job,
    folder: Path,
    title: str,
) -> History:
    """Trains what of `model` the optimizer holds, in place, to the end of the course; a row of
    HISTORY for each epoch.

    loss: (views (B,3,side,side) float32 in [0,1], labels (B,)) -> the mean loss of a batch.
    ids: (n,) labelled rows. folder: for checkpoints; a training that was interrupted goes on from
    the end of its last epoch, and ends in the same bytes as one that was not. Raises UserError for
    a batch that the processes cannot share evenly.
    """
    if course.batch % world_size():
        raise UserError(
            f"{title}: a batch of {course.batch} of {len(ids)} images cannot be shared evenly by "
            f"{world_size()} processes: set `batch` to a multiple of {world_size()}"
        )
    schedule = Schedule(job.seed, ids, course.batch, course.epochs)
    labels, steps, epoch = manifest.labels.to(job.device), schedule.steps_per_epoch, 0
    history: History = []
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    state = broadcast_from_first(lambda: checkpoint.load_newest(folder, job.fingerprint))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, history = state["epoch"], state["history"]
    batches = pairs(
        manifest,
        crop_and_flip(side),
        schedule,
        images=course.images,
        device=job.device,
        workers=job.workers,
        start=(epoch, 0),
        branches=("query",),
    )
    if epoch == course.epochs:
        return history
    total = torch.zeros((), device=job.device)
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    with progress(title, course.epochs * steps, "steps", done=epoch * steps) as bar:
        for crops in batches:
            share = course.rate_share(crops.epoch, crops.step, steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            value = loss(crops.crops["query"].float() / 255, labels[crops.ids])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            all_reduce_mean([p.grad for p in learning if p.grad is not None])
            optimizer.step()
            total += value.detach()
            bar.advance(1)
            if crops.step == steps - 1:
                all_reduce_mean([total])
                rate = optimizer.param_groups[-1]["lr"]
                row = (title, crops.epoch + 1, rate, total.item() / steps)
                history.append(dict(zip(HISTORY, row, strict=True)))
                total.zero_()
                state = {
                    "fingerprint": job.fingerprint,
                    "epoch": crops.epoch + 1,
                    "history": history,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                if rank() == 0:
                    checkpoint.save(folder, crops.epoch + 1, state)
    return history


def write_history(job: Job, history: History) -> None:
    """Writes history.csv, where a protocol may have trained several classifiers: a row for each
    epoch of each. From the first process."""
    if rank() == 0:
        told = ({**row, "lr": f"{row['lr']:.8g}", "loss": f"{row['loss']:.8g}"} for row in history)
        write_rows(job.out / "history.csv", told, HISTORY)


def head(width: int, classes: int, device: torch.device) -> nn.Linear:
    """A classifier that has learned nothing: weights N(0, 0.01), biases 0 (He et al. 2020)."""
    made = nn.Linear(width, classes)
    nn.init.normal_(made.weight, std=0.01)
    nn.init.zeros_(made.bias)
    return made.to(device)
