"""What only a GPU can show, in one command of less than ten minutes.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --device cpu --small      # a test of the command itself

Measured are steps against the bare encoder, the kernels and host waits of a step by torch.profiler,
its peak memory, the rates of the saliency stage and of the loader, and k-NN. The file is written
after each part, so that a part that fails loses nothing before it.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import tabulate
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import step
from benchmarks.__main__ import machine
from benchmarks.loader import drawn_images, manifest_of, salmask_views
from benchmarks.ratios import ratio
from benchmarks.saliency_stage import measure as measure_saliency
from benchmarks.step import Setting
from salmask.evaluate.features import Labelled
from salmask.evaluate.knn import nearest
from salmask.memory import keep_large_blocks
from salmask.params.saliency import SaliencyConfig
from salmask.params.view import ViewConfig

Figures = dict[str, float]
_REGION = "measured steps"  # name of the profiled part in the profiler's events
_PROFILED = 3  # steps


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        settings: networks whose steps are measured.
        masks: of the steps and of the loader's views.
        rounds: number of timed rounds.
        levels: of saliency, px.
        images: of the saliency stage.
        view: side of the loader's views, px.
        grid: patches a side of the loader's views.
        batch: images of a batch of the loader.
        batches: number of timed batches of the loader.
        features: neighbours of k-NN.
        queries: of k-NN.
        width: of the features.
    """

    settings: tuple[Setting, ...]
    masks: tuple[str, ...] = ("none", "high_pass")
    rounds: int = 10
    levels: tuple[int, ...] = (224, 320, 448)
    images: int = 2048
    view: int = 224
    grid: int = 7
    batch: int = 256
    batches: int = 30
    features: int = 400_000
    queries: int = 10_000
    width: int = 2048


_RESNET18 = Setting(batch=256, precision="bfloat16")
_RESNET50 = replace(_RESNET18, arch="resnet50", stem="imagenet", size=224, grid=7)
FULL = Sizes((_RESNET18, _RESNET50))
SMALL = Sizes(
    (Setting(arch="resnet10", size=16, grid=4, batch=4, bn_group=2, queue=64),),
    rounds=1,
    levels=(64,),
    images=8,
    view=32,
    grid=4,
    batch=4,
    batches=2,
    features=500,
    queries=20,
    width=16,
)


def step_figures(
    setting: Setting, masks: Sequence[str], device: torch.device, rounds: int
) -> Figures:
    """Milliseconds and ratios of steps and bare passes; kernels, copies, waits and memory."""
    figures: Figures = {}
    for mask in masks:
        before = _reset_peak(device)
        training_step, _ = step.step_of(setting.run(mask), device)
        for name, value in profiled(training_step, device).items():
            figures[f"{mask}: {name}"] = value
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) - before
            figures[f"{mask}: peak memory, GB"] = peak / 1e9
        del training_step
    measured = step.measure(setting, masks, device, rounds)
    for name, seconds in measured.seconds.items():
        figures[f"{name}: ms"] = 1000 * median(seconds)
        if name in measured.base:
            figures[f"{name} / bare passes"] = ratio(measured.seconds, name, measured.base[name])
    for mask in masks:
        kernel_ms = figures[f"{mask}: kernel ms"]
        figures[f"{mask}: share of the time with kernels"] = kernel_ms / figures[f"{mask}: ms"]
    return figures


def profiled(work: Callable[[], None], device: torch.device) -> Figures:
    """Per call of `work`: numbers of operators, kernels, copies and host waits, and milliseconds of
    kernels. The first call is not profiled."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    work()
    with profile(activities=activities) as trace, record_function(_REGION):
        for _ in range(_PROFILED):
            work()
    totals = count_events(trace.events() or [])
    return {name: total / _PROFILED for name, total in totals.items()}


def count_events(events: Sequence[Any]) -> Figures:
    """The totals of a profile within the region that `profiled` names.

    The profiler itself waits for the device at its end, outside of the region.
    """
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    [region] = [event for event in on_host if event.name == _REGION]
    start, end = region.time_range.start, region.time_range.end
    inside = [event.name for event in on_host if start <= event.time_range.start <= end]
    on_device = [e for e in events if e.device_type == DeviceType.CUDA and e.name != _REGION]
    copies = [e for e in on_device if e.name.startswith(("Memcpy", "Memset"))]
    kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset"))]
    return {
        "operators": sum(name.startswith("aten::") for name in inside),
        "kernels": len(kernels),
        "copies": len(copies),
        "host waits": sum("Synchronize" in name for name in inside),
        "kernel ms": sum(e.time_range.end - e.time_range.start for e in kernels) / 1000,
    }


def loader_figures(sizes: Sizes, device: torch.device, workers: int) -> Figures:
    """Images per second of two crops each on the device, and of all of the views."""
    figures: Figures = {}
    view = ViewConfig(size=sizes.view, grid=sizes.grid)
    with tempfile.TemporaryDirectory() as folder:
        manifest = manifest_of(drawn_images(Path(folder), sizes.view, sizes.batch))
        for images in ("stream", "auto"):
            for mask in sizes.masks:
                views, crops = salmask_views(manifest, view, mask, images, device, workers)
                work = {f"{images}, views with mask {mask}: images/s": views}
                if mask == sizes.masks[0]:
                    work = {f"{images}, crops: images/s": crops} | work
                for name, following in work.items():
                    seconds = _seconds(following, sizes.batches, 4 * max(1, workers), device)
                    figures[name] = len(manifest) * sizes.batches / seconds
    return figures


def saliency_figures(sizes: Sizes, device: torch.device, workers: int) -> Figures:
    """Images per second of the saliency stage and of the localizer alone."""
    config = SaliencyConfig(levels=sizes.levels, correction=0, precision="float32")
    rounds = min(3, sizes.rounds)
    times, images = measure_saliency(config, device, sizes.images, workers, rounds)
    return {
        "stage: images/s": images / min(times["stage"]),
        "bare forward passes: images/s": images / min(times["bare"]),
        "stage / bare forward passes": ratio(times, "stage", "bare"),
    }


def knn_figures(sizes: Sizes, device: torch.device) -> Figures:
    """Queries per second of k-NN with 200 neighbours, in float32, and its memory."""
    labels = torch.zeros(sizes.features, dtype=torch.int64, device=device)
    train = Labelled(torch.randn(sizes.features, sizes.width, device=device), labels)
    queries = torch.randn(sizes.queries, sizes.width, device=device)
    before = _reset_peak(device)
    seconds = _seconds(lambda: nearest(train, queries, 200), 3, 1, device)
    figures = {f"queries/s among {sizes.features} images": 3 * sizes.queries / seconds}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before
        figures["peak memory beside the features, GB"] = peak / 1e9
    return figures


def _seconds(work: Callable[[], object], count: int, warm_up: int, device: torch.device) -> float:
    """Seconds of some calls, by the wall clock, after others."""
    for _ in range(warm_up):
        work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    _wait(device)
    return time.perf_counter() - start


def _reset_peak(device: torch.device) -> int:
    """Makes the peak memory of a GPU start from now. Returns the bytes in use."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@click.command()
@click.option("--device", "device_name", default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Small networks and few images: a test of the command.")
@click.option("--workers", default=min(16, os.cpu_count() or 1), show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Writes all figures there.")
def main(device_name: str, small: bool, workers: int, output: Path | None) -> None:
    """Prints all figures."""
    device, sizes = torch.device(device_name), SMALL if small else FULL
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("there is no GPU; `--device cpu --small` tests the command")
    if device.type == "cpu" and not small:
        raise click.UsageError("on a CPU, add --small; `make bench` measures CPUs")
    keep_large_blocks()
    parts: dict[str, Callable[[], Figures]] = {}
    for setting in sizes.settings:
        name = f"step, {setting.arch}, {setting.size} px, batch {setting.batch}"
        parts[name] = lambda s=setting: step_figures(s, sizes.masks, device, sizes.rounds)  # type: ignore[misc]
    parts["loader"] = lambda: loader_figures(sizes, device, workers)
    parts["saliency"] = lambda: saliency_figures(sizes, device, workers)
    parts["k-NN"] = lambda: knn_figures(sizes, device)
    used = machine() | {"device": device_name, "workers": workers}
    if device.type == "cuda":
        used["gpu"] = torch.cuda.get_device_name(device)
    content: dict[str, Any] = {"machine": used, "sizes": asdict(sizes)}
    figures = content["figures"] = {}
    seconds = content["seconds"] = {}
    for name, measure in parts.items():
        start = time.monotonic()
        try:
            figures[name] = measure()
        except torch.OutOfMemoryError:
            print(f"{name}: the memory of the GPU is too small")
            figures[name] = {}
        seconds[name] = round(time.monotonic() - start, 1)
        rows = figures[name].items()
        print(tabulate.tabulate(rows, headers=(name, ""), floatfmt=".4g"), "\n", flush=True)
        if output:
            output.write_text(json.dumps(content, indent=2) + "\n")
    print(f"{sum(seconds.values()):.0f} s")


if __name__ == "__main__":
    main()
