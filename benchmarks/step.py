"""Time of a pretraining step over the time of its bare passes, in one process.

    python -m benchmarks.step --masks none,blur,high_pass --precision float32
    python -m benchmarks.step --framework byol --masks none --compile
    python -m benchmarks.step --waits

The bare passes are the least that a step must compute: forward and backward of a plain network on
the query, forwards on the key and, where the mask makes one, on the hard negative. `--waits` counts
the operators of a step instead, and the operations for which the host would wait for a GPU, on the
simulated device of the tests, which needs a clone of the repository. Pixels and maps are random.
The candidates take turns, and times are CPU time, so that other programs on the machine change
little.
"""

import importlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.ratios import Times, interleaved, ratio, report
from salmask import frameworks
from salmask.data.loader import Crops
from salmask.data.views import branch_names
from salmask.devices import autocast, pick_device, place
from salmask.encoders.backbones import build_encoder
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
from salmask.train.batches import make_batch
from salmask.train.pretrain import Learner

GOAL = 1.12  # time of a step over that of its bare passes
_COMPILED = ", compiled"


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


def step_of(run: RunConfig, device: torch.device) -> tuple[Callable[[], None], int]:
    """A training step without data loading, and the number of hard negatives of a query."""
    learner, batch = Learner(run, 0, 100, device), run.train.batch
    crops = random_crops(batch, run.view.size, device, learner.mask.extra_views)
    store = None
    if learner.mask.reads_saliency:
        store = SaliencyStore({}, {224: torch.rand(batch, 7, 7).to(device)})
    labels = (torch.arange(batch) % 2).to(device) if learner.wiring.classes else None

    def step() -> None:
        learner.step(make_batch(crops, run, 0, store, labels), 3)["loss"].item()

    views = make_batch(crops, run, 0, store, labels).views(learner.mask)
    return step, sum(len(negatives) for negatives in views.negatives.values())


def bare_passes(
    run: RunConfig, device: torch.device, negatives: int, bn_group: int = 0
) -> Callable[[], None]:
    """Forward and backward of one encoder on the query, forwards on key and hard negatives."""
    network = place(build_encoder(run.encoder, bn_group), device).train()
    shape = (run.train.batch, 3, run.view.size, run.view.size)
    views = [torch.randn(shape).to(device, memory_format=torch.channels_last) for _ in range(2)]

    def passes() -> None:
        with autocast(device, run.train.precision):
            loss = network(views[0]).float().square().mean()
            with torch.no_grad():
                for _ in range(1 + negatives):
                    network(views[1])
        network.zero_grad(set_to_none=True)
        loss.backward()
        loss.item()

    return passes


@dataclass(frozen=True)
class Setting:
    """What is measured, apart from the mask. See the options of `main`."""

    framework: str = "moco"
    arch: str = "resnet18"
    stem: str = "small2"
    size: int = 64
    grid: int = 8
    batch: int = 128
    bn_group: int = 32
    queue: int = 65536
    precision: str = "float32"

    def run(self, mask: str, compiled: bool = False) -> RunConfig:
        """The run with a mask."""
        options: dict[str, Any] = {"bn_group": min(self.bn_group, self.batch)}
        more = {"moco": {"queue": self.queue}, "supervised": {"classes": 2}}
        return RunConfig(
            name="benchmark",
            encoder=EncoderConfig(arch=self.arch, stem=self.stem),  # type: ignore[arg-type]
            view=ViewConfig(size=self.size, grid=self.grid),
            mask=Choice(mask, {}),
            framework=Choice(self.framework, options | more.get(self.framework, {})),
            train=TrainConfig(batch=self.batch, precision=self.precision, compile=compiled),  # type: ignore[arg-type]
        )

    def text(self, device: torch.device) -> str:
        """One line that describes the setting."""
        return (
            f"{self.framework}, {self.arch}, stem {self.stem}, {self.size} px, batch {self.batch}, "
            f"{self.precision}, {device.type}, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads"
        )


@dataclass(frozen=True)
class Measured:
    """Times of steps and of their bare passes.

    Args:
        seconds: of each round, by name; the names of steps are those of their masks.
        base: step or grouped passes -> its bare passes.
        first: seconds of the first step of what is compiled, by the wall clock.
    """

    seconds: Times
    base: dict[str, str]
    first: dict[str, float]

    def figures(self) -> dict[str, tuple[float, float]]:
        """The ratios of steps to their bare passes and of compiled to other steps, with goals."""
        steps = [name for name in self.base if not name.startswith("the same")]
        figures = {
            f"{name} / bare passes": (ratio(self.seconds, name, self.base[name]), GOAL)
            for name in steps
        }
        for name in self.first:
            eager = name.removesuffix(_COMPILED)
            figures[f"{name} / {eager}"] = (ratio(self.seconds, name, eager), 1.0)
        return figures

    def print(self) -> None:
        for name, own in self.seconds.items():
            to_bare = ratio(self.seconds, name, self.base.get(name, name))
            print(f"{name:44} {1000 * median(own):9.1f} ms {to_bare:7.3f} of bare passes")
        for name, seconds in self.first.items():
            print(f"{name}: the first step, with compilation, took {seconds:.0f} s")


def measure(
    setting: Setting,
    masks: Sequence[str],
    device: torch.device,
    rounds: int,
    compiled: bool = False,
    wall: bool = False,
) -> Measured:
    """Times steps and bare passes in turn.

    Args:
        setting: what is measured.
        masks: names of masks.
        device: where the steps run. On CUDA, the wall clock is used.
        rounds: number of timed rounds.
        compiled: whether to time steps with `train.compile` too.
        wall: whether to use the wall clock on a CPU.
    """
    work: dict[str, Callable[[], None]] = {}
    base: dict[str, str] = {}
    first: dict[str, float] = {}
    for mask in masks:
        for with_compiler in (False, True) if compiled else (False,):
            name = mask + _COMPILED if with_compiler else mask
            work[name], negatives = step_of(setting.run(mask, with_compiler), device)
            if with_compiler:
                start = time.perf_counter()
                work[name]()
                first[name] = time.perf_counter() - start
            base[name] = f"bare passes, {negatives} hard negatives"
            if base[name] not in work:
                run, group = setting.run(mask), setting.bn_group
                work[base[name]] = bare_passes(run, device, negatives)
                grouped = f"the same, groups of {group}, {negatives} hard negatives"
                work[grouped] = bare_passes(run, device, negatives, group)
                base[grouped] = base[name]
    uses_wall = wall or device.type == "cuda"
    clock = time.perf_counter if uses_wall else time.process_time
    return Measured(interleaved(work, rounds, clock=clock), base, first)


def count_waits(runs: dict[str, RunConfig]) -> None:
    """Prints the number of operators of a step, and what the host waits for."""
    pretended = importlib.import_module("tests.helpers.pretended")

    class Counting(TorchDispatchMode):
        """Counts operators."""

        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += 1
            return func(*args, **(kwargs or {}))

    # First, because torch counts the devices at the first backward pass of a process.
    with pretended.pretence():
        for mask, run in runs.items():
            step, _ = step_of(run, torch.device(pretended.NAME))
            step()
            pretended.WAITS.clear()
            step()
            waits = Counter(pretended.WAITS)
            print(f"{mask:12} {sum(waits.values())} waits")
            for what, count in waits.most_common():
                print(f"{'':12} {count:3} x {what}")
    for mask, run in runs.items():
        step, _ = step_of(run, torch.device("cpu"))
        step()
        with Counting() as counting:
            step()
        print(f"{mask:12} {counting.calls} operators, with views")


@click.command()
@click.option("--framework", default="moco", type=click.Choice(list(frameworks.FRAMEWORKS)))
@click.option("--masks", default="none,blur,high_pass", help="Names, separated by commas.")
@click.option("--arch", default="resnet18")
@click.option("--stem", default="small2")
@click.option("--size", default=64)
@click.option("--grid", default=8)
@click.option("--batch", default=128)
@click.option("--bn-group", default=32)
@click.option("--queue", default=65536, help="For moco.")
@click.option("--precision", default="float32")
@click.option("--compile", "compiled", is_flag=True, help="Also time steps with train.compile.")
@click.option("--rounds", default=5, help="Number of timed rounds, after one for warm-up.")
@click.option("--wall", is_flag=True, help="Wall time instead of CPU time.")
@click.option("--waits", is_flag=True, help="Count operators and waits instead of time.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the ratios.")
def main(
    framework: str,
    masks: str,
    arch: str,
    stem: str,
    size: int,
    grid: int,
    batch: int,
    bn_group: int,
    queue: int,
    precision: str,
    compiled: bool,
    rounds: int,
    wall: bool,
    waits: bool,
    json_file: Path | None,
) -> None:
    """Prints milliseconds, and the ratio to the bare passes with ordinary batch norm."""
    device = pick_device()
    setting = Setting(framework, arch, stem, size, grid, batch, bn_group, queue, precision)
    names = masks.split(",")
    if waits:
        count_waits({mask: setting.run(mask) for mask in names})
        return
    measured = measure(setting, names, device, rounds, compiled, wall)
    print(setting.text(device))
    measured.print()
    report(measured.figures(), json_file)


if __name__ == "__main__":
    main()
