"""The part of a detector's training step that is not its network: data, targets, losses, optimizer.

    python -m benchmarks.detect
    python -m benchmarks.detect --regions 512 --batch 2      # as published: minutes on one thread

Mask R-CNN with a ResNet-50 (C4) at 800 px, on a CPU, with images and objects that are drawn. The
network is its forward passes, RoIAlign and the whole backward pass. Data are prepared in the same
process, without workers. With fewer regions than the published 512 the network takes less, so that
the other parts have larger shares.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.loader import CPU, drawn_images
from benchmarks.ratios import report
from salmask.detection import rle
from salmask.detection.batches import Resizing, training_batches
from salmask.detection.objects import AnnotatedImage
from salmask.detection.training import detector_inputs
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.memory import keep_large_blocks
from salmask.params.encoder import EncoderConfig

GOAL = 0.1  # share of a step outside the network
_OBJECTS = 7  # of an image; the mean of COCO
_HEIGHT, _WIDTH = 375, 500  # px, of the drawn images


class NetworkTime:
    """The CPU seconds of the forward passes of some modules, none of which contains another."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.seconds = self._since = 0.0
        for module in modules:
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._since = time.process_time()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._since


def annotated(file: Path, generator: np.random.Generator) -> AnnotatedImage:
    """A drawn image with boxes of random places and sizes, each with an ellipse as mask."""
    centres = generator.uniform(0.2, 0.8, (_OBJECTS, 2)) * (_WIDTH, _HEIGHT)
    halves = generator.uniform(0.05, 0.2, (_OBJECTS, 2)) * (_WIDTH, _HEIGHT)
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    shapes = [
        ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        for (cx, cy), (rx, ry) in zip(centres, halves, strict=True)
    ]
    return AnnotatedImage(
        file,
        _HEIGHT,
        _WIDTH,
        boxes,
        generator.integers(0, 80, _OBJECTS),
        np.zeros(_OBJECTS, dtype=bool),
        np.prod(2 * halves, axis=1),
        tuple(rle.encode(np.array(shapes))),
    )


def measure(arch: str, side: int, batch: int, regions: int, rounds: int) -> dict[str, float]:
    """CPU seconds of all rounds after the first, by part of the step."""
    from salmask.detection.detector import Detector  # imports torchvision, which is slow

    config = EncoderConfig(arch=arch, stem="imagenet")
    encoder = Encoder(build_encoder(config, seed=0), config, InputSpec(224, 224, None))
    detector = Detector(encoder, 80, masks=True, regions=regions)
    detector = detector.to(memory_format=torch.channels_last).train()
    heads = detector.heads
    network = NetworkTime(
        [
            detector.trunk,
            detector.rpn.head,
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            heads.mask_predictor,
        ]
    )
    optimizer = torch.optim.SGD(detector.parameters(), 0.001, momentum=0.9)
    seconds: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        files = drawn_images(Path(folder), 224, max(4, batch))
        batches = training_batches(
            [annotated(file, generator) for file in files],
            Resizing((side,)),
            seed=0,
            batch=batch,
            start=0,
            end=rounds + 1,
            masks=True,
            workers=0,
            device=CPU,
        )
        for number in range(rounds + 1):
            if number == 1:
                seconds.clear()
            times, network.seconds = [time.process_time()], 0.0
            examples = next(batches)
            times.append(time.process_time())
            losses = detector(*detector_inputs(examples))
            times.append(time.process_time())
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            times.append(time.process_time())
            optimizer.step()
            times.append(time.process_time())
            data, forward, backward, step = np.diff(times).tolist()
            seconds["network, forward"] += network.seconds
            seconds["network, backward"] += backward
            seconds["data"] += data
            seconds["proposals, targets and losses"] += forward - network.seconds
            seconds["optimizer"] += step
    return seconds


@click.command()
@click.option("--arch", default="resnet50", show_default=True)
@click.option("--side", default=800, show_default=True, help="Short side of the images, px.")
@click.option("--batch", default=1, show_default=True)
@click.option("--regions", default=64, show_default=True, help="Of an image, in the loss.")
@click.option("--rounds", default=2, show_default=True, help="Timed steps, after one for warm-up.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the shares.")
def main(
    arch: str, side: int, batch: int, regions: int, rounds: int, json_file: Path | None
) -> None:
    """Prints the CPU time of each part of a step, and the share outside the network."""
    torch.set_num_threads(1)
    keep_large_blocks()
    seconds = measure(arch, side, batch, regions, rounds)
    total = sum(seconds.values())
    print(f"{arch}, {side} px, batch {batch}, {regions} regions, {torch.get_num_threads()} thread")
    for part, value in seconds.items():
        print(f"{part:32} {1000 * value / rounds:9.0f} ms {value / total:7.3f} of the step")
    outside = sum(v for part, v in seconds.items() if not part.startswith("network"))
    report({"share outside the network": (outside / total, GOAL)}, json_file)


if __name__ == "__main__":
    main()
