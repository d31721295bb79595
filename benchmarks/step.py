"""Speed of a pretraining step with each mask, relative to the step without a mask.

    python -m benchmarks.step --arch resnet18 --stem small2 --size 64 --grid 8 --batch 128
    python -m benchmarks.step --framework byol

Pixels and maps are random. Everything on the device is measured: photometry, saliency crop, masks,
forward passes, backward pass, optimizer. The masks take turns, so that a temporary slowdown of the
machine affects all of them. Only the ratios are comparable between machines.
"""

import time
from statistics import median
from typing import Any

import click
import torch

from salmask import frameworks
from salmask.data.loader import Crops
from salmask.data.views import branch_names
from salmask.devices import autocast, pick_device, place
from salmask.errors import UserError
from salmask.masks import MASKS
from salmask.masks.options import options_of
from salmask.masks.wiring import WiredMask, wire_mask
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Wiring
from salmask.train.adversary import Adversary
from salmask.train.batches import make_batch
from salmask.train.optim import build_optimizer


def random_crops(batch: int, size: int, device: torch.device, extra_views: int = 0) -> Crops:
    """One batch of random pixels with typical boxes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    box = torch.tensor([0.2, 0.2, 0.6, 0.6]).expand(batch, 4)
    flip = torch.arange(batch) % 2 == 0
    parts = [dict.fromkeys(branch_names(extra_views), part) for part in (pixels, box, flip)]
    return Crops(0, 0, torch.arange(batch), *parts).to(device)


def mask_for(name: str, wiring: Wiring, view: ViewConfig) -> WiredMask:
    """A mask with its default options, without hard negatives if the framework has no negatives.

    Raises UserError when the mask is not defined for the framework.
    """
    options: dict[str, Any] = {}
    if MASKS[name].hard_negatives(options_of(Choice(name, {}))) and not wiring.hard_negatives:
        options = {"hard_negative": None}
    return wire_mask(Choice(name, options), wiring, view)


class Candidate:
    """The model for one mask, and its step times."""

    def __init__(self, mask: str, run: RunConfig, device: torch.device) -> None:
        self.device, self.run = device, run
        model = frameworks.build(run.framework, run.encoder, run.train.batch)
        self.model = place(model, self.device)
        self.mask = mask_for(mask, self.model.wiring, run.view)
        masker = self.mask.masker
        self.adversary = Adversary(place(masker, device)) if masker else None
        self.crops = random_crops(run.train.batch, run.view.size, device, self.mask.extra_views)
        maps = {224: torch.rand(run.train.batch, 7, 7, device=device)}
        self.store = SaliencyStore({}, maps) if self.mask.reads_saliency else None
        self.optimizer = build_optimizer(self.model, run.train)
        self.seconds: list[float] = []

    def step(self) -> None:
        start = time.perf_counter()
        batch = make_batch(self.crops, self.run, 0, self.store)
        views = batch.views(self.mask)
        with autocast(self.device, self.run.train.precision):
            loss = self.model(views, 0.0)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.adversary:
            precision = autocast(self.device, self.run.train.precision)
            self.adversary.step(self.model, batch, 1.0, precision)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)


@click.command()
@click.option("--framework", default="moco", type=click.Choice(list(frameworks.FRAMEWORKS)))
@click.option("--arch", default="resnet18")
@click.option("--stem", default="small2")
@click.option("--size", default=64)
@click.option("--grid", default=8)
@click.option("--batch", default=128)
@click.option(
    "--steps", default=5, help="Number of timed steps of each mask, after one for warm-up."
)
@click.option("--precision", default="bfloat16")
def main(
    framework: str,
    arch: str,
    stem: str,
    size: int,
    grid: int,
    batch: int,
    steps: int,
    precision: str,
) -> None:
    """Prints images per second, and the speed relative to the step without a mask."""
    device = pick_device()
    run = RunConfig(
        name="benchmark",
        encoder=EncoderConfig(arch=arch, stem=stem),  # type: ignore[arg-type]
        view=ViewConfig(size=size, grid=grid),
        mask=Choice("none", {}),
        framework=Choice(
            framework,
            {"bn_group": min(32, batch)} | ({"queue": 32 * batch} if framework == "moco" else {}),
        ),
        train=TrainConfig(batch=batch, precision=precision),  # type: ignore[arg-type]
    )
    candidates: dict[str, Candidate] = {}
    for name in MASKS:
        try:
            candidates[name] = Candidate(name, run, device)
        except UserError as error:
            print(error)
    for _ in range(steps + 1):
        for candidate in candidates.values():
            candidate.step()
    times = {name: median(c.seconds[1:]) for name, c in candidates.items()}
    print(f"{framework}, {arch}, stem {stem}, {size} px, batch {batch}, {precision}, {device.type}")
    for name, seconds in times.items():
        print(f"{name:12} {batch / seconds:8.0f} images/s   {times['none'] / seconds:5.2f} of none")


if __name__ == "__main__":
    main()
