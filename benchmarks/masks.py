"""Time to mask the views of a batch, as a share of one forward and backward pass of the encoder.

    python -m benchmarks.masks --arch resnet50 --size 224 --grid 7 --batch 32

Pixels and maps are random, in float32. Decoding, photometry, the networks of the framework, and the
training step of a learned mask are not measured. Masks and encoder take turns, so that a temporary
slowdown of the machine affects all of them.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import click
import torch
from torch import nn

from benchmarks.step import mask_for, random_crops
from salmask.devices import pick_device, place
from salmask.encoders.backbones import build_encoder
from salmask.masks import MASKS
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Wiring
from salmask.train.batches import Batch, make_batch

MOCO = Wiring("moco", "moco v2", hard_negatives=True)


def batch_for(run: RunConfig, extra_views: int, device: torch.device) -> Batch:
    """A batch of random pixels with activation maps."""
    maps = {224: torch.rand(run.train.batch, 7, 7, device=device)}
    crops = random_crops(run.train.batch, run.view.size, device, extra_views)
    return make_batch(crops, run, 0, SaliencyStore({}, maps))


def one_pass(encoder: nn.Module, batch: Batch) -> None:
    encoder.zero_grad(set_to_none=True)
    encoder(batch.pair.query).sum().backward()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@click.command()
@click.option("--arch", default="resnet18")
@click.option("--stem", default="small2")
@click.option("--size", default=64)
@click.option("--grid", default=8)
@click.option("--batch", default=128)
@click.option("--rounds", default=7, help="Number of timed rounds, after one for warm-up.")
def main(arch: str, stem: str, size: int, grid: int, batch: int, rounds: int) -> None:
    """Prints milliseconds per batch, and the share of an encoder pass."""
    device = pick_device()
    run = RunConfig(
        name="benchmark",
        encoder=EncoderConfig(arch=arch, stem=stem),  # type: ignore[arg-type]
        view=ViewConfig(size=size, grid=grid),
        mask=Choice("none", {}),
        framework=Choice("moco", {}),
        train=TrainConfig(batch=batch),
    )
    encoder = place(build_encoder(run.encoder), device)
    work: dict[str, Callable[[], object]] = {}
    for name in MASKS:
        mask = mask_for(name, MOCO, run.view)
        if mask.masker:
            place(mask.masker, device)
        work[name] = partial(batch_for(run, mask.extra_views, device).views, mask)
    work["encoder"] = partial(one_pass, encoder, batch_for(run, 0, device))
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, once in work.items():
            times[name].append(seconds(once, device))
    medians = {name: median(spent[1:]) for name, spent in times.items()}
    print(f"{arch}, stem {stem}, {size} px, batch {batch}, float32, {device.type}")
    for name, spent in medians.items():
        print(f"{name:12} {1000 * spent:8.1f} ms   {spent / medians['encoder']:6.3f} of a pass")


if __name__ == "__main__":
    main()
