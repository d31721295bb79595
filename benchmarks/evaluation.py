"""Memory of k-NN and `linear_fast` relative to their features, and passes over a suite's images.

    python -m benchmarks.evaluation

Features are random. Each measurement of memory is a process of its own. The slope between the
smallest and the largest number of images says what a million images need.
"""

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.ratios import report
from salmask.data import manifest as manifests
from salmask.data.manifest import Manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.evaluate import knn, linear_fast
from salmask.evaluate.features import Labelled
from salmask.job import Job
from salmask.params.encoder import EncoderConfig

_WIDTH, _CLASSES, _QUERIES = 2048, 1000, 2048
_IMAGENET = 1_281_167
_MEMORY_GOAL = 1.3  # for further images, over their features
_RUNS, _SEEDS, _IMAGES, _SIDE = 13, 3, 48, 16
_FILTER = {"name": "high_pass", "kernel": 3, "sigma": 1.0}


def measure(protocol: str, count: int, iterations: int) -> dict[str, float]:
    """Peak memory above the start in bytes, and CPU seconds, of one evaluation in this process."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count + _QUERIES) % _CLASSES
    splits = {"train": torch.arange(count), "val": torch.arange(count, count + _QUERIES)}

    def extract_rows(encoder: Any, rows: Any, ids: torch.Tensor, *others: Any) -> Labelled:
        features = torch.empty(len(ids), _WIDTH)
        for part in features.split(4096):  # random numbers for all rows would need more memory
            part.normal_(generator=generator)
        return Labelled(features, labels[ids])

    def extract(encoder: Any, rows: Any, split: str, job: Job) -> Labelled:
        return extract_rows(encoder, rows, splits[split])

    module: Any = knn if protocol == "knn" else linear_fast
    module.extract, module.extract_rows = extract, extract_rows
    names = np.array(["train"] * count + ["val"] * _QUERIES, dtype=object)
    empty: Any = ()
    sizes = torch.zeros(len(labels), 2, dtype=torch.int64)
    classes = tuple(map(str, range(_CLASSES)))
    rows = Manifest("x", Path(), classes, "", [""] * len(labels), names, labels, sizes, empty)  # type: ignore[arg-type]
    job = Job("f" * 12, Path(), Path(), torch.device("cpu"), 0)
    encoders: Any = {
        "trained": Encoder(torch.nn.Identity(), EncoderConfig(), InputSpec(1, 1, None))
    }
    options = {} if protocol == "knn" else {"l2": (1e-2, 1e-3), "iterations": iterations}
    before, start = _peak(), time.process_time()
    module.run(encoders, rows, job, **options)
    return {"peak": _peak() - before, "cpu": time.process_time() - start}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(sizes: tuple[int, ...], iterations: int) -> dict[str, float]:
    """Prints a row for each evaluation and number of images. Returns the memory for further images
    over that of their features."""
    slopes = {}
    print("evaluation    images  CPU s  peak GB  peak / features")
    for protocol in ("knn", "linear_fast"):
        results = []
        for count in sizes:
            command = [sys.executable, "-m", "benchmarks.evaluation", "--measure", protocol]
            command += ["--sizes", str(count), "--iterations", str(iterations)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
            result = json.loads(process.stdout.splitlines()[-1])
            results.append(result["peak"])
            share = result["peak"] / (4 * _WIDTH * count)
            gigabytes = result["peak"] / 1e9
            print(f"{protocol:12} {count:7} {result['cpu']:6.1f} {gigabytes:8.2f} {share:12.2f}")
        slope = (results[-1] - results[0]) / (sizes[-1] - sizes[0])
        total = results[-1] + slope * (_IMAGENET - sizes[-1])
        print(
            f"{protocol}: {slope / (4 * _WIDTH):.2f} times the features of further images; "
            f"{total / 1e9:.1f} GB for {_IMAGENET} images, whose features have "
            f"{4 * _WIDTH * _IMAGENET / 1e9:.1f} GB",
            flush=True,
        )
        slopes[protocol] = slope / (4 * _WIDTH)
    return slopes


def passes() -> float:
    """Prints how often the images of a suite are encoded, for runs with two kinds of input.
    Returns the number where the runs share stored features."""
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.redirect_stdout(sys.stderr):
            rows = _images(Path(scratch))
        job = Job("f" * 12, Path(scratch), Path(scratch), torch.device("cpu"), 0, workers=0)
        for features in (None, Path(scratch) / "features"):
            encoded = 0

            def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
                nonlocal encoded
                encoded += len(output)

            shared = dataclasses.replace(job, features=features)
            for run in range(_RUNS):
                spec = InputSpec(_SIDE, _SIDE, _FILTER if run % 2 else None)
                encoders = {"trained": _encoder(100 + run, spec)}
                encoders |= {f"random-{seed}": _encoder(seed, spec) for seed in range(_SEEDS)}
                for encoder in encoders.values():
                    encoder.register_forward_hook(count)
                with contextlib.redirect_stdout(sys.stderr):  # progress lines
                    knn.run(encoders, rows, shared, k=(3,))
                    linear_fast.run({"trained": encoders["trained"]}, rows, shared, iterations=2)
            kind = "in a shared folder" if features else "in memory"
            print(
                f"{_RUNS} runs, two kinds of input, k-NN with {_SEEDS} untrained encoders and "
                f"linear_fast: {encoded / len(rows):.2f} passes over the images, features {kind}"
            )
        return encoded / len(rows)


def _encoder(seed: int, spec: InputSpec) -> Encoder:
    config = EncoderConfig("resnet10", 8, "small2")
    return Encoder(build_encoder(config, seed=seed), config, spec).eval().requires_grad_(False)


def _images(folder: Path) -> Manifest:
    random, files = np.random.default_rng(0), []
    (folder / "images").mkdir()
    for number in range(2 * _IMAGES):
        name = f"{number:03d}.png"
        pixels = random.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        files.append(ListedFile(name, number % 3, ("train", "val")[number // _IMAGES]))
    write_manifest(Listing(folder / "images", ("a", "b", "c"), files), "x", folder, 0)
    return manifests.load(folder)


@click.command()
@click.option("--sizes", multiple=True, type=int, default=[10_000, 20_000, 40_000])
@click.option("--iterations", default=5, show_default=True, help="Of L-BFGS.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the figures.")
@click.option("--measure", "protocol", hidden=True)
def main(
    sizes: tuple[int, ...], iterations: int, json_file: Path | None, protocol: str | None
) -> None:
    """Prints the memory of evaluations, and the passes of a suite."""
    if protocol:
        print(json.dumps(measure(protocol, sizes[0], iterations)))
        return
    figures = {f"passes of {_RUNS} runs": (passes(), float(_RUNS + 2 * _SEEDS))}
    for name, slope in memory(sizes, iterations).items():
        figures[f"{name}: memory over features"] = (slope, _MEMORY_GOAL)
    report(figures, json_file)


if __name__ == "__main__":
    main()
