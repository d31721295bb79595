"""Speed of the saliency stage, as a ratio to the bare forward passes of the localizer.

    python -m benchmarks.saliency_stage [--photos FOLDER] [--count 512] [--levels 224,320,448]

The stage reads, checks and decodes files, squashes them to every level, runs the localizer and
writes the store; the bare loop runs the localizer on pixels that lie ready. They take turns. On a
CPU, decoding and localizer share the cores, so the stage also pays for the former.
"""

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import torch

from benchmarks.loader import drawn_images
from benchmarks.ratios import Times, ratio, report
from salmask.data import manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.devices import autocast, pick_device, place
from salmask.job import Job
from salmask.params.saliency import SaliencyConfig
from salmask.saliency import maps
from salmask.saliency.localizers.lite0 import lite0
from salmask.saliency.scda import activation_map
from salmask.saliency.trunks import Trunk

GOAL = 1.03  # time of the stage, as a ratio to the bare forward passes
_DRAWN = 64  # different images, if there are no photographs


@torch.inference_mode()
def bare(trunk: Trunk, config: SaliencyConfig, batches: int, device: torch.device) -> float:
    """Seconds of the forward passes alone."""
    pixels = {n: torch.zeros(config.batch, 3, n, n, dtype=torch.uint8) for n in config.levels}
    start = time.perf_counter()
    for _ in range(batches):
        for images in pixels.values():
            ready = (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
            with autocast(device, config.precision):
                activation_map(trunk(ready)).cpu()
    return time.perf_counter() - start


def measure(
    config: SaliencyConfig,
    device: torch.device,
    count: int,
    workers: int,
    rounds: int,
    photos: Path | None = None,
) -> tuple[Times, int]:
    """Seconds of the bare forward passes, `bare`, and of the stage, `stage`, in each round after
    a warm-up, and the number of images.

    Args:
        config: levels, precision and batch of the stage.
        device: of the localizer.
        count: number of images; files repeat if there are fewer.
        workers: processes that decode.
        rounds: number of timed rounds.
        photos: a folder of JPEG files; None draws some.
    """
    spec, tensors = lite0()
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    trunk = place(trunk, device)
    times: dict[str, list[float]] = {"bare": [], "stage": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if photos is None:
            photos = folder / "images"
            photos.mkdir()
            drawn_images(photos, 224, min(count, _DRAWN))
        files = sorted(photos.rglob("*.jpg"))
        listed = [
            ListedFile(str(files[i % len(files)].relative_to(photos)), -1, "train")
            for i in range(count)
        ]
        write_manifest(Listing(photos.resolve(), (), listed), "photos", folder / "data", 0.05)
        rows = manifest.load(folder / "data")
        plan = maps.plan(rows, config, spec)
        job = Job("0" * 12, folder / "work", folder / "out", device, seed=0, workers=workers)
        for _ in range(rounds + 1):
            times["bare"].append(bare(trunk, config, -(-len(rows) // config.batch), device))
            start = time.perf_counter()
            store = folder / "work" / "saliency.zarr"
            maps.fill(store, plan, rows, trunk, config, job)
            maps.finish(store, plan, rows, trunk, config, job)
            times["stage"].append(time.perf_counter() - start)
            shutil.rmtree(folder / "work")
    return {name: seconds[1:] for name, seconds in times.items()}, len(rows)


@click.command()
@click.option("--photos", type=click.Path(exists=True, path_type=Path), help="Else drawn images.")
@click.option("--count", default=512, show_default=True, help="Images; more than there are repeat.")
@click.option("--levels", default="224,320,448", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes that decode.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the ratio.")
def main(
    photos: Path | None,
    count: int,
    levels: str,
    precision: str,
    workers: int,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Prints images/s of both and the ratio."""
    device = pick_device()
    config = SaliencyConfig(
        levels=tuple(int(n) for n in levels.split(",")),
        correction=0,
        precision=precision,  # type: ignore[arg-type]
    )
    times, images = measure(config, device, count, workers, rounds, photos)
    rate = {name: images / median(seconds) for name, seconds in times.items()}
    print(f"levels {levels}, {precision}, {device.type}, {workers} workers, {images} images")
    print(f"bare forward {rate['bare']:.1f} images/s, stage {rate['stage']:.1f}")
    figures = {"stage to bare forward passes": (ratio(times, "stage", "bare"), GOAL)}
    report(figures, json_file)


if __name__ == "__main__":
    main()
