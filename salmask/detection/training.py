"""Training a detector; an interrupted one ends in the same bytes as one that was left alone."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.detection.batches import Example
from salmask.detection.detector import Detector, Targets
from salmask.detection.recipes import Recipe
from salmask.devices import Precision, autocast
from salmask.distributed import (
    all_reduce_max,
    all_reduce_mean,
    broadcast_from_first,
    data_parallel,
    rank,
    world_size,
)
from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError
from salmask.job import Job
from salmask.progress import progress
from salmask.train import checkpoint
from salmask.train.stopping import StopSignal, saving

Batches = Callable[[int, int], Iterator[list[Example]]]  # those of iterations from, to


def train(
    detector: Detector,
    batches: Batches,
    recipe: Recipe,
    job: Job,
    precision: Precision = "auto",
) -> None:
    """Trains in place, going on from the newest checkpoint in `job.work` if there is one; several
    processes share each batch, all call this together, and the first one writes.

    Raises NonFiniteLossError when the loss leaves the numbers, InterruptedRunError after SIGTERM or
    SIGUSR2 and DataGoneError when the images' folder vanishes, with a checkpoint saved, UserError
    for a batch that cannot be shared evenly.
    """
    if recipe.batch % world_size():
        raise UserError(f"batch {recipe.batch} cannot be shared evenly by {world_size()} processes")
    with StopSignal() as stop:
        _train(detector, batches, recipe, job, precision, stop)


def _train(
    detector: Detector,
    batches: Batches,
    recipe: Recipe,
    job: Job,
    precision: Precision,
    stop: StopSignal,
) -> None:
    optimizer = _optimizer(detector, recipe)
    iteration = 0
    state = broadcast_from_first(lambda: checkpoint.load_newest(job.work, job.fingerprint))
    if state is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        iteration = state["iteration"]
    forward = data_parallel(detector.train(), job.device)

    def save() -> None:
        if rank() == 0:
            told_state = {
                "fingerprint": job.fingerprint,
                "iteration": iteration,
                "model": detector.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            checkpoint.save(job.work, iteration, told_state)

    saved_at = time.monotonic()
    with progress("detection", recipe.iterations, "iterations", done=iteration) as bar:
        for batch in saving(batches(iteration, recipe.iterations), save):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(iteration)
            with autocast(job.device, precision):
                losses: dict[str, Tensor] = forward(*on_device(batch, job.device))
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            seen = torch.stack([value.detach() for value in losses.values()])
            all_reduce_mean([seen])
            loss = seen.sum().item()  # the step's one synchronisation
            if not math.isfinite(loss):
                named = zip(losses, seen.tolist(), strict=True)
                told = ", ".join(f"{name} {value:.3g}" for name, value in named)
                raise NonFiniteLossError(
                    f"the loss left the numbers at iteration {iteration} ({told}): try a smaller "
                    "`lr`, a longer `warmup`, or `scale_lr` for a small batch"
                )
            optimizer.step()
            all_reduce_mean(_statistics(detector))
            iteration += 1
            bar.advance(1, f"loss {loss:.3f}")
            asked = all_reduce_max(
                stop.asked
            )  # a signal that comes from here on is the next step's
            due = all_reduce_max(int(time.monotonic() - saved_at > 60 * job.checkpoint_minutes))
            if due or asked or iteration == recipe.iterations:
                save()
                saved_at = time.monotonic()
            if asked and iteration < recipe.iterations:
                broadcast_from_first(lambda: None)  # nobody leaves before the checkpoint is written
                raise InterruptedRunError(
                    f"asked to stop at iteration {iteration} of {recipe.iterations}; a checkpoint "
                    "is saved",
                    asked,
                )


@torch.no_grad()
def precise_batch_norm(
    detector: Detector, batches: Batches, after: int, count: int, job: Job, precision: Precision
) -> None:
    """Precise batch norm: makes running statistics the plain mean over the `count` batches that
    come after so many iterations, on which nothing learns; in place.

    As MoCo's detection configurations have it (He et al. 2020, code: 200 batches). Norms that are
    frozen stay as they are. All processes call this together.
    """
    norms = [m for m in detector.train().modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms or not count:
        return
    rates = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # each batch counts alike
    with progress("detection: batch norm", count, "batches") as bar:
        for batch in batches(after, after + count):
            with autocast(job.device, precision):
                detector(*on_device(batch, job.device))
            bar.advance(1)
    all_reduce_mean(_statistics(detector))
    for layer, rate in zip(norms, rates, strict=True):
        layer.momentum = rate


def on_device(batch: list[Example], device: torch.device) -> tuple[list[Tensor], Targets]:
    """Images as float32 in [0,1], and their targets."""
    images = [image.to(device).float() / 255 for image, _ in batch]
    targets = [{name: value.to(device) for name, value in t.items()} for _, t in batch]
    return images, targets


def _statistics(detector: Detector) -> list[Tensor]:
    """What batch norms of each process's own part remember; with `sync` all remember the same."""
    if detector.norm == "sync":
        return []
    norms = [layer for layer in detector.modules() if isinstance(layer, _BatchNorm)]
    return [some for layer in norms for some in (layer.running_mean, layer.running_var)
            if some is not None]  # fmt: skip


def _optimizer(detector: Detector, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD; batch norms do not decay (as in detectron2, which the papers used)."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for layer in detector.modules():
        some = norms if isinstance(layer, _BatchNorm) else others
        some += _learning(layer)
    groups = [
        {"params": others, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], recipe.lr, recipe.momentum)


def _learning(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer.parameters(recurse=False) if p.requires_grad]
