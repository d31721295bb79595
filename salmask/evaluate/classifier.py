"""SGD of a classifier on augmented views (crop and flip), for the protocols linear, finetune and
transfer.

Several processes share each batch and average their gradients: the result equals that of one
process up to rounding.
"""

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.data.loader import Crops, Schedule, training_views
from salmask.data.manifest import Manifest
from salmask.distributed import all_reduce_mean, world_size
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate.features import crop_and_flip, width
from salmask.job import Job
from salmask.train import engine
from salmask.train.engine import History

HISTORY = ("training", "epoch", "lr", "loss")  # columns of history.csv; lr: of the classifier


@dataclass(frozen=True)
class ClassifierSchedule:
    """Length and learning-rate schedule of a training.

    Args:
        batch: global batch size.
        epochs: number of epochs.
        schedule: `step` multiplies the rates by `gamma` at the start of every epoch in
            `milestones`, counted from 0. `cosine` decreases them to 0, every step.
        milestones: epochs of the schedule `step`.
        gamma: factor of the schedule `step`.
        images: as in `train`.
    """

    batch: int
    epochs: int
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    images: str = "auto"

    def rate_share(self, step: int, steps_per_epoch: int) -> float:
        """The share of the initial rate at a global step."""
        if self.schedule == "step":
            return self.gamma ** bisect_right(self.milestones, step // steps_per_epoch)
        done = step / (self.epochs * steps_per_epoch)
        return 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    manifest: Manifest,
    ids: Tensor,
    side: int,
    course: ClassifierSchedule,
    job: Job,
    name: str,
    may_diverge: bool = False,
) -> History:
    """Trains the parameters of `optimizer`, in place, on views of labelled images.

    A training that was interrupted resumes from its newest checkpoint.

    Args:
        model: the module with all state that changes, buffers included.
        loss: (views (B,3,side,side) float32 in [0,1], labels (B,) int64) -> () mean loss of them.
        optimizer: its groups have the initial learning rates.
        manifest: the images.
        ids: (n,) int64 rows of the training images.
        side: side of a view in px.
        course: how long, and with which learning rates.
        job: device, seed and folders.
        name: of the training, in the history, in progress lines and below `job.work`.
        may_diverge: whether training continues when the loss is not finite.

    Returns:
        A row with the columns HISTORY for each epoch.

    Raises:
        UserError: when the processes cannot share a batch evenly.
        InterruptedRunError, DataGoneError, NonFiniteLossError: see `engine.train`.
    """
    if course.batch % world_size():
        raise UserError(
            f"{name}: a batch of {course.batch} of {len(ids)} images cannot be shared evenly by "
            f"{world_size()} processes: set `batch` to a multiple of {world_size()}"
        )
    schedule = Schedule(job.seed, ids, course.batch, course.epochs)
    labels = manifest.labels.to(job.device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]

    def batches(first_step: int) -> Iterator[Crops]:
        return training_views(
            manifest,
            crop_and_flip(side),
            schedule,
            images=course.images,
            device=job.device,
            workers=job.workers,
            start=divmod(first_step, schedule.steps_per_epoch),
            branches=("query",),
        )

    def step(crops: Crops, number: int) -> dict[str, Tensor]:
        share = course.rate_share(number, schedule.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        value = loss(crops.crops["query"].float() / 255, labels[crops.ids])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        all_reduce_mean([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        value = value.detach()
        all_reduce_mean([value])
        return {"loss": value}

    loop = engine.Loop(
        title=name,
        steps=schedule.steps_per_epoch * course.epochs,
        steps_per_epoch=schedule.steps_per_epoch,
        state={"model": model, "optimizer": optimizer},
        batches=batches,
        step=step,
        rate=lambda step: optimizer.param_groups[-1]["lr"],
        advice="try a smaller `lr`",
        may_diverge=may_diverge,
    )
    history = engine.train(loop, job, job.work / name)
    return [{"training": name, **row} for row in history]


def train_linear(
    encoder: Encoder,
    manifest: Manifest,
    ids: Tensor,
    course: ClassifierSchedule,
    job: Job,
    name: str,
    rates: Sequence[float],
    **sgd: Any,
) -> tuple[nn.ModuleList, History]:
    """Linear classifiers on a frozen encoder, one for each rate, trained on the same views.

    They start from equal weights. See `train`, also for the history and for errors.

    Args:
        encoder: in eval mode.
        manifest: the images.
        ids: (n,) int64 rows of the training images.
        course: how long, and with which learning rates.
        job: device, seed and folders.
        name: of the training.
        rates: initial learning rates at batch 256, scaled with the batch. Of several, some may
            diverge.
        **sgd: further options of SGD.
    """
    torch.manual_seed(job.seed)
    first = head(width(encoder, job), len(manifest.classes), job.device)
    models = nn.ModuleList(copy.deepcopy(first) for _ in rates)
    groups = [
        {"params": list(model.parameters()), "lr": rate * course.batch / 256}
        for model, rate in zip(models, rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, **sgd)

    def loss(views: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            pooled = encoder(views)
        return torch.stack([F.cross_entropy(model(pooled), labels) for model in models]).sum()

    side, several = encoder.spec.size, len(rates) > 1
    history = train(models, loss, optimizer, manifest, ids, side, course, job, name, several)
    return models, history


def write_history(job: Job, history: History) -> None:
    """Writes history.csv of a protocol: the epochs of all its trainings."""
    engine.write_history(job.out / "history.csv", history, HISTORY)


def head(width: int, classes: int, device: torch.device) -> nn.Linear:
    """A new linear classifier: weights N(0, 0.01), biases 0 (He et al. 2020)."""
    made = nn.Linear(width, classes)
    nn.init.normal_(made.weight, std=0.01)
    nn.init.zeros_(made.bias)
    return made.to(device)
