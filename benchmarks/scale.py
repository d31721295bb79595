"""A manifest and a saliency store of a million images, and what a training and k-NN do with them.

    python -m benchmarks.scale [/scratch/scale]

Writes a manifest and a store of random maps (three levels) to the folder, unless they are there
(else to a temporary folder). Prints for each step its seconds, its CPU seconds and the peak memory
of the process until then. All steps run in one process. The images do not exist.
"""

import csv
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.ratios import report
from salmask.data import columns, location
from salmask.data import manifest as manifests
from salmask.data.loader import Schedule
from salmask.data.prepare import COLUMNS
from salmask.evaluate import knn
from salmask.evaluate.features import Labelled
from salmask.files import file_digest, write_json
from salmask.params.saliency import SaliencyConfig
from salmask.saliency import store
from salmask.saliency.correction import Correction
from salmask.saliency.store import SaliencyStore
from salmask.saliency.store_rows import StorePlan, scaled

_GRIDS = {224: (7, 7), 320: (10, 10), 448: (14, 14)}
_CLASSES, _WIDTH, _QUERIES, _BATCH = 1000, 128, 2048, 256
_MEMORY_GOAL, _STORE_GOAL = 4.0, 3.0  # GB of all steps, seconds to open the store


def make_manifest(folder: Path, rows: int) -> None:
    """Writes a manifest of images that do not exist."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "placeholder").touch()  # an empty folder is taken for one not mounted
    digests = np.random.default_rng(0).bytes(32 * rows)
    with (folder / "manifest.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in range(rows):
            label, sha256 = row % _CLASSES, digests[32 * row : 32 * row + 32].hex()
            path = f"train/n{label:08d}/n{label:08d}_{row}.JPEG"
            table.writerow((row, path, label, "train", 500, 375, sha256))
    digest = file_digest(folder / "manifest.csv")
    columns.write_binary(folder, digest)
    classes = [f"n{label:08d}" for label in range(_CLASSES)]
    described = {"name": "scale", "classes": classes, "digest": digest}
    location.save(folder.absolute() / "images", folder.absolute(), Path.cwd())
    write_json(folder / "dataset.json", described)


def make_store(path: Path, rows: int) -> None:
    """Writes a store of random maps."""
    shard_rows = SaliencyConfig().rows_per_shard(rows)
    plan = StorePlan(rows, shard_rows, _GRIDS, {"manifest": "m" * 64, "localizer": {}}, 1024)
    path.parent.mkdir(parents=True)
    store.create(path, plan)
    generator = torch.Generator().manual_seed(0)
    for index in range(plan.shards):
        count = len(plan.shard(index))
        raw = {n: torch.rand(count, *grid, generator=generator) for n, grid in _GRIDS.items()}
        sha256 = torch.randint(256, (count, 32), dtype=torch.uint8, generator=generator)
        store.write_shard(path, plan, index, scaled(raw, sha256))
    store.write_correction(path, Correction(len(_GRIDS)))


@contextmanager
def step(name: str) -> Iterator[list[float]]:
    """Prints seconds, CPU seconds and peak memory of a step. Yields a list for its seconds."""
    wall, cpu, times = time.perf_counter(), time.process_time(), list[float]()
    yield times
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    times.append(seconds)
    print(f"{name:40} {seconds:8.2f} {cpu_seconds:8.2f} {peak():8.2f}", flush=True)


def peak() -> float:
    """The peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(folder: Path, json_file: Path | None) -> None:
    """Opens everything in this process, and uses it."""
    print(f"{'step':40} {'seconds':>8} {'CPU s':>8} {'peak GB':>8}")
    print(f"{'imports':40} {'':8} {'':8} {peak():8.2f}")
    with step("manifest: open"):
        rows = manifests.load(folder / "data")
    generator = torch.Generator().manual_seed(0)
    with step("order of an epoch, first batch"):
        _, _, ids = next(Schedule(0, rows.ids("train"), _BATCH, epochs=1).batches(0, 0))
    with step("store: open and load") as store_seconds:
        maps = SaliencyStore.open(folder / "saliency" / "saliency.zarr", "m" * 64)
    boxes = torch.rand(_BATCH, 4, generator=generator) * 0.25 + torch.tensor([0.0, 0.0, 0.5, 0.5])
    with step(f"store: crop of {_BATCH} views"):
        maps.crop(ids, boxes, ids % 2 == 0, (7, 7))
    with step(f"features: {len(rows)} x {_WIDTH}"):
        bank = Labelled(torch.randn(len(rows), _WIDTH, generator=generator), rows.labels)
        queries = torch.randn(_QUERIES, _WIDTH, generator=generator)
    with step(f"k-NN of {_QUERIES} queries, k 200"):
        knn.vote(bank.labels, *knn.nearest(bank, queries, 200), 0.07)
    figures = {
        "peak memory of all steps, GB": (peak(), _MEMORY_GOAL),
        "store: open and load, s": (store_seconds[0], _STORE_GOAL),
    }
    report(figures, json_file)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--rows", default=1_281_167, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the figures.")
@click.option("--measure", "only_measure", is_flag=True, hidden=True)
def main(folder: Path | None, rows: int, json_file: Path | None, only_measure: bool) -> None:
    """Measures in a process of its own, because memory of the writing process would count."""
    if only_measure:
        assert folder
        measure(folder, json_file)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder or Path(scratch)
        write(folder, rows)
        command = [sys.executable, "-m", "benchmarks.scale", str(folder), "--measure"]
        command += ["--json", str(json_file)] if json_file else []
        # Not a fork, in whose child the peak memory of this process would count.
        os.waitpid(os.posix_spawn(sys.executable, command, os.environ), 0)


def write(folder: Path, rows: int) -> None:
    """Writes manifest and store, unless they exist, and prints their size."""
    if not (folder / "data" / "dataset.json").exists():
        make_manifest(folder / "data", rows)
    path = folder / "saliency" / "saliency.zarr"
    if not path.exists():
        make_store(path, rows)
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    in_store = sum(1 for file in path.rglob("*") if file.is_file())
    print(f"{size / 1e9:.2f} GB on disk; {in_store} files in the store")


if __name__ == "__main__":
    main()
