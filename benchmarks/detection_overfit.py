"""Whether detection can learn at all: twenty images of a COCO-format folder, learned by heart.

    python -m benchmarks.detection_overfit FOLDER --out SOMEWHERE

A detector that sees its test images in training must reach AP50 over 90; what stops it is a bug in
targets, losses, coordinates or scores. A small trunk with random weights, at a size for CPU cores.

Of 128 images of COCO, the 20 whose smallest object is largest (35 objects) gave, as the options
stand, after 4.6 minutes of one core: boxes AP50 100.0, AP 76.8; masks AP50 87.6, AP 58.0.
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from salmask.detection import annotations
from salmask.detection.objects import Annotations, Picture
from salmask.detection.protocol import Sets, run
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.job import Job
from salmask.params.encoder import EncoderConfig


def chosen(everything: Annotations, count: int, side: int) -> Annotations:
    """The `count` images whose smallest object is largest, by the short side of its box in px
    where the image's short side is `side`: what is below a cell of the trunk cannot be learned."""

    def smallest(picture: Picture) -> float:
        sides = picture.boxes[:, 2:] - picture.boxes[:, :2]
        return float(sides.min()) * side / min(picture.height, picture.width)

    usable = [p for p in everything.pictures if len(p) and not p.ignored.any()]
    best = sorted(usable, key=smallest, reverse=True)[:count]
    sizes = [smallest(picture) for picture in best]
    objects = sum(len(picture) for picture in best)
    print(f"{len(best)} images, {objects} objects; smallest side {min(sizes):.0f} px")
    return replace(everything, pictures=tuple(best))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), help="Where the sheet and the table go.")
@click.option("--arch", default="resnet10")
@click.option("--width", default=16)
@click.option("--stem", default="small2")
@click.option("--images", default=20)
@click.option("--side", default=96, help="Short side, px.")
@click.option("--iterations", default=700)
@click.option("--batch", default=4)
@click.option("--lr", default=0.03)
@click.option("--regions", default=32)
@click.option("--seed", default=0)
def main(
    folder: Path,
    out: Path | None,
    arch: str,
    width: int,
    stem: str,
    images: int,
    side: int,
    iterations: int,
    batch: int,
    lr: float,
    regions: int,
    seed: int,
) -> None:
    """FOLDER holds images/ and instances.json."""
    config = EncoderConfig(arch, width, stem)  # type: ignore[arg-type]
    everything = annotations.coco(folder / "instances.json", folder / "images", masks=True)
    some = chosen(everything, images, side)
    encoder = Encoder(build_encoder(config, seed=seed), config, InputSpec(side, side, None))
    with tempfile.TemporaryDirectory() as work:
        job = Job("overfit", Path(work), out or Path(work), torch.device("cpu"), seed, workers=0)
        metrics = run(
            {"trained": encoder},
            Sets("overfit", some, some),
            job,
            recipe="voc",
            iterations=iterations,
            milestones=(int(0.75 * iterations), int(0.92 * iterations)),
            batch=batch,
            lr=lr,
            warmup=min(50, iterations // 4),
            short_sides=(side,),
            test_short_side=side,
            anchors=tuple(int(a) for a in np.array([0.25, 0.5, 1.0]) * side),
            regions=regions,
            flip=0.0,
        )
    print(f"{time.process_time() / 60:.1f} minutes of CPU")
    print(json.dumps({name: round(value, 2) for name, value in metrics.items()}, indent=2))


if __name__ == "__main__":
    main()
