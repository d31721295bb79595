"""Training a detector; an interrupted one ends in the same bytes as one that was left alone."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salmask.errors import NonFiniteLossError
from salmask.evaluate.detection.examples import Example, Looks, training_batches
from salmask.evaluate.detection.model import Detector, Losses, Targets
from salmask.evaluate.detection.objects import Picture
from salmask.evaluate.detection.recipes import Recipe
from salmask.job import Job
from salmask.norms import GroupedBatchNorm
from salmask.progress import progress
from salmask.randomness import Draws
from salmask.train import checkpoint


def train(
    detector: Detector, pictures: Sequence[Picture], recipe: Recipe, looks: Looks, job: Job
) -> None:
    """Trains in place, in float32, going on from the newest checkpoint in `job.work` if there is
    one. Raises NonFiniteLossError when the loss leaves the numbers."""
    optimizer = _optimizer(detector, recipe)
    iteration = 0
    state = checkpoint.load_newest(job.work, job.fingerprint)
    if state is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        iteration = state["iteration"]
    batches = training_batches(
        pictures,
        looks,
        seed=job.seed,
        batch=recipe.batch,
        start=iteration,
        end=recipe.iterations,
        masks=detector.heads.has_mask(),
        workers=job.workers,
    )
    detector.train()
    saved_at = time.monotonic()
    with progress("detection", recipe.iterations, "iterations", done=iteration) as bar:
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(iteration)
            images, targets = on_device(batch, job.device)
            losses = losses_of(detector, images, targets, job.seed, iteration)
            loss = torch.stack(list(losses.values())).sum()
            if not math.isfinite(loss.item()):
                told = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
                raise NonFiniteLossError(
                    f"the loss left the numbers at iteration {iteration} ({told}): try a smaller "
                    "`lr`, a longer `warmup`, or `scale_lr` for a small batch"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            iteration += 1
            bar.advance(1, f"loss {loss.item():.3f}")
            due = time.monotonic() - saved_at > 60 * job.checkpoint_minutes
            if due or iteration == recipe.iterations:
                told_state = {
                    "fingerprint": job.fingerprint,
                    "iteration": iteration,
                    "model": detector.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                checkpoint.save(job.work, iteration, told_state)
                saved_at = time.monotonic()


def losses_of(
    detector: Detector, images: list[Tensor], targets: Targets, seed: int, iteration: int
) -> Losses:
    """The losses of a batch. Which anchors and regions they are taken on is drawn from (seed,
    iteration); torch's own generators are left as they were."""
    device = images[0].device
    words = Draws.of(seed, iteration, torch.zeros(1, dtype=torch.int64)).fork("regions").key
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(words))
        losses = detector(images, targets)
    assert isinstance(losses, dict)
    return losses


def on_device(batch: list[Example], device: torch.device) -> tuple[list[Tensor], Targets]:
    """Images as float32 in [0,1], and their targets."""
    images = [image.to(device).float() / 255 for image, _ in batch]
    targets = [{name: value.to(device) for name, value in t.items()} for _, t in batch]
    return images, targets


def _optimizer(detector: Detector, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD; batch norms do not decay (as in detectron2, which the papers used)."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for layer in detector.modules():
        some = norms if isinstance(layer, GroupedBatchNorm) else others
        some += _learning(layer)
    groups = [
        {"params": others, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], recipe.lr, recipe.momentum)


def _learning(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer.parameters(recurse=False) if p.requires_grad]
