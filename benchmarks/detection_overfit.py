"""Overfits a detector on twenty images in COCO's format, to test that detection can learn at all.

    python -m benchmarks.detection_overfit FOLDER --out OUT

A detector that is tested on its training images must reach an AP50 above 90. If it does not, there
is an error in targets, losses, coordinates or scores. The trunk is small and has random weights, so
that a CPU is enough.

With the default options and the 20 images (35 objects) of coco128 with the largest smallest object:
boxes AP50 100.0, AP 76.8; masks AP50 87.6, AP 58.0, after 4.6 minutes on one core.
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from salmask.detection.datasets.coco import read_file
from salmask.detection.objects import AnnotatedImage, Annotations, DetectionData
from salmask.detection.protocol import run
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.job import Job
from salmask.params.encoder import EncoderConfig


def with_large_objects(annotations: Annotations, count: int, side: int) -> Annotations:
    """The `count` images whose smallest object is largest.

    Objects that are smaller than a cell of the trunk cannot be learned. The size of an object is
    the short side of its box, in px of an image with short side `side`.
    """

    def smallest(image: AnnotatedImage) -> float:
        sides = image.boxes[:, 2:] - image.boxes[:, :2]
        return float(sides.min()) * side / min(image.height, image.width)

    usable = [i for i in annotations.images if len(i) and not i.ignored.any()]
    best = sorted(usable, key=smallest, reverse=True)[:count]
    sizes = [smallest(image) for image in best]
    objects = sum(len(image) for image in best)
    print(f"{len(best)} images, {objects} objects; smallest side {min(sizes):.0f} px")
    return replace(annotations, images=tuple(best))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the sheet and the table.")
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
    """FOLDER contains images/ and instances.json."""
    config = EncoderConfig(arch, width, stem)  # type: ignore[arg-type]
    annotations = read_file(folder / "instances.json", folder / "images", masks=True)
    chosen = with_large_objects(annotations, images, side)
    encoder = Encoder(build_encoder(config, seed=seed), config, InputSpec(side, side, None))
    with tempfile.TemporaryDirectory() as work:
        job = Job("overfit", Path(work), out or Path(work), torch.device("cpu"), seed, workers=0)
        metrics = run(
            {"trained": encoder},
            DetectionData("overfit", chosen, chosen),
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
