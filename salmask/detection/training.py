"""Trains a detector. A resumed training ends in the same bytes as an uninterrupted one."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.detection.batches import Example
from salmask.detection.recipes import DetectorRecipe
from salmask.devices import Precision, autocast
from salmask.distributed import all_reduce_mean, data_parallel, world_size
from salmask.errors import UserError
from salmask.job import Job
from salmask.progress import progress
from salmask.train import engine

if TYPE_CHECKING:
    from salmask.detection.detector import Detector, Targets

Batches = Callable[[int, int], Iterator[list[Example]]]  # (first, end) -> batches of iterations


def train(
    detector: "Detector",
    batches: Batches,
    recipe: DetectorRecipe,
    job: Job,
    precision: Precision = "auto",
) -> None:
    """Trains a detector in place, from the newest checkpoint in `job.work` if there is one.

    Several processes share each batch. All of them call this together, and the first one writes.

    Args:
        detector: on the device of the job.
        batches: the batches of a range of iterations, on the device of the job.
        recipe: the schedule.
        job: device, folder of checkpoints, and how often they are written.
        precision: of the convolutions.

    Raises:
        NonFiniteLossError: the loss is not finite.
        InterruptedRunError: after SIGTERM or SIGUSR2, with a checkpoint saved.
        DataGoneError: the folder of the images does not exist any more, with a checkpoint saved.
        UserError: the processes cannot share a batch evenly.
    """
    if recipe.batch % world_size():
        raise UserError(f"batch {recipe.batch} cannot be shared evenly by {world_size()} processes")
    optimizer = _optimizer(detector, recipe)
    forward = data_parallel(detector.train(), job.device)

    def step(batch: list[Example], iteration: int) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(iteration)
        with autocast(job.device, precision):
            losses: dict[str, Tensor] = forward(*detector_inputs(batch))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        values = torch.stack([value.detach() for value in losses.values()])
        all_reduce_mean([values])
        optimizer.step()
        all_reduce_mean(_running_statistics(detector))
        return dict(zip(("loss", *losses), (values.sum(), *values.unbind()), strict=True))

    loop = engine.Loop(
        title="detection",
        steps=recipe.iterations,
        state={"model": detector, "optimizer": optimizer},
        batches=lambda start: batches(start, recipe.iterations),
        step=step,
        rate=recipe.rate,
        unit="iteration",
        advice="try a smaller `lr`, a longer `warmup`, or `scale_lr` for a small batch",
    )
    engine.train(loop, job, job.work)


@torch.no_grad()
def precise_batch_norm(
    detector: "Detector", batches: Batches, start: int, count: int, job: Job, precision: Precision
) -> None:
    """Replaces running statistics of batch norms by their mean over `count` batches, in place.

    MoCo's detection configurations do this with 200 batches (He et al. 2020, code). Frozen norms
    do not change. All processes call this together.

    Args:
        detector: after its training; no weight changes.
        batches: the batches of a range of iterations, on the device of the job.
        start: the first iteration, that is, the number of trained iterations.
        count: number of batches; 0 keeps the running averages.
        job: device.
        precision: of the convolutions.
    """
    norms = [m for m in detector.train().modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms or not count:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
    with progress("detection: batch norm", count, "batches") as bar:
        for batch in batches(start, start + count):
            with autocast(job.device, precision):
                detector(*detector_inputs(batch))
            bar.advance(1)
    all_reduce_mean(_running_statistics(detector))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def detector_inputs(batch: list[Example]) -> "tuple[list[Tensor], Targets]":
    """The inputs of a detector: images as float32 in [0,1], and their targets."""
    return [image.float() / 255 for image, _ in batch], [target for _, target in batch]


def _running_statistics(detector: "Detector") -> list[Tensor]:
    """Running statistics that differ between processes; with `sync` none do."""
    if detector.norm == "sync":
        return []
    norms = [layer for layer in detector.modules() if isinstance(layer, _BatchNorm)]
    return [value for layer in norms for value in (layer.running_mean, layer.running_var)
            if value is not None]  # fmt: skip


def _optimizer(detector: "Detector", recipe: DetectorRecipe) -> torch.optim.Optimizer:
    """SGD without weight decay of batch norms, as in detectron2, which the papers used."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for layer in detector.modules():
        group = norms if isinstance(layer, _BatchNorm) else others
        group += [p for p in layer.parameters(recurse=False) if p.requires_grad]
    groups = [
        {"params": others, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], recipe.lr, recipe.momentum)
