"""Accuracy and duration of linear_fast and of the linear protocol, for the same encoder and images.

    python -m benchmarks.linear_fast artifacts/pretrain/mocov2 artifacts/data --each 100

Both read the images from disk. --each limits the number of labelled training images per class. All
validation images count. --epochs shortens the linear protocol, which then differs from the papers.
Of several --lr, the linear protocol chooses the best on held-out images.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from salmask.data import manifest as manifests
from salmask.data.manifest import Manifest
from salmask.devices import pick_device
from salmask.encoders import on_disk as encoder_file
from salmask.evaluate import linear, linear_fast
from salmask.evaluate.subsets import balanced, labelled_ids
from salmask.job import Job
from salmask.randomness import Draws


def subset(rows: Manifest, each: int) -> Manifest:
    """The same images, with labels on `each` training images of every class and on all others."""
    ids = labelled_ids(rows, "train")
    order = Draws.of(0, 0, ids).uniform("labels", 1)[:, 0]
    hidden = torch.zeros(len(rows), dtype=torch.bool)
    hidden[ids] = True
    hidden[balanced(ids, rows.labels[ids], each, order)] = False
    return dataclasses.replace(rows, labels=rows.labels.masked_fill(hidden, -1))


def measured(protocol: Any, encoder: Path, rows: Manifest, **options: Any) -> tuple[float, float]:
    """Top-1 accuracy in percent on `val`, and the duration in seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        job = Job("benchmark", Path(scratch) / "work", Path(scratch), pick_device(), seed=0)
        encoders = {"trained": encoder_file.load(encoder, job.device)}
        start = time.perf_counter()
        result = protocol.run(encoders, rows, job, **options)
        (score,) = (value for name, value in result.items() if name.startswith("linear"))
        return score, time.perf_counter() - start


@click.command()
@click.argument("encoder", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--each", type=int, help="Training images of each class; all.")
@click.option("--epochs", type=int, default=100, show_default=True)
@click.option("--lr", type=float, multiple=True, default=[30.0], show_default=True)
@click.option("--threads", type=int, default=torch.get_num_threads(), show_default=True)
def main(
    encoder: Path, data: Path, each: int | None, epochs: int, lr: tuple[float, ...], threads: int
) -> None:
    """Prints accuracy and duration of both protocols; of linear_fast on centre crops, 2 and 4
    views, with the difference in points and the ratio of durations."""
    torch.set_num_threads(threads)
    rows = manifests.load(data)
    rows = subset(rows, each) if each else rows
    counts = [len(labelled_ids(rows, split)) for split in ("train", "val")]
    print("{} training images, {} of val".format(*counts), flush=True)
    drops = (epochs * 3 // 5, epochs * 4 // 5)
    rate = lr if len(lr) > 1 else lr[0]
    options = {"lr": rate, "epochs": epochs, "milestones": drops, "images": "resident"}
    slow, slow_seconds = measured(linear, encoder, rows, **options)
    print(f"linear {slow:.2f} in {slow_seconds:.0f} s", flush=True)
    for views in (0, 2, 4):
        fast, seconds = measured(linear_fast, encoder, rows, views=views, images="resident")
        message = f"{fast - slow:+.2f} points, {slow_seconds / seconds:.1f} x as fast"
        print(f"linear_fast, views {views}: {fast:.2f} in {seconds:.0f} s: {message}", flush=True)


if __name__ == "__main__":
    main()
