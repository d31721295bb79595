"""CPU time to mask the views of a batch, relative to copying them, and to loops over images.

    python -m benchmarks.masks --size 224 --grid 7 --batch 64

The loops in `masks_by_loops.py` are written from the papers, image by image. Both start from the
same normalised views and activation maps. To copy the query and the key is the least that a masked
query and a hard negative can cost.

Our masks run as in a training, which keeps large blocks of memory. Copies and loops start without
such blocks, as the public code does; with --keep-memory they have them too.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import click
import torch

from benchmarks.masks_by_loops import Loops
from benchmarks.ratios import interleaved, milliseconds, ratio, release_memory, report
from salmask.masks import MASKS
from salmask.masks.wiring import WiredMask, wire_mask
from salmask.memory import keep_large_blocks
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.shapes import Pair, Wiring

MOCO = Wiring("moco", "moco v2", hard_negatives=True)
TO_COPY = {
    "high_pass": 6.0, "mscn": 12.0, "blur": 3.0, "mean": 1.5, "mixmask": 2.0, "unmix": 2.0,
    "erase": 2.0,
}  # fmt: skip
TO_LOOP = dict.fromkeys(TO_COPY, 0.3) | {"adios": 1.0}  # of adios, both run one network
ADIOS_TO_COPY = 2.0  # beyond its network


def random_pair(batch: int, side: int, grid: int) -> Pair:
    """Random views, four of each image, and activation maps."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, 3, side, side, generator=generator) for _ in range(4)]
    maps = [torch.rand(batch, grid, grid, generator=generator) for _ in range(2)]
    return Pair(views[0], views[1], maps[0], maps[1], tuple(views[2:]))


def masking(mask: WiredMask, pair: Pair) -> Callable[[], object]:
    """A function that masks the pair with other random numbers every time."""
    rows = len(pair.query)
    shuffle, epochs = torch.arange(rows).expand(2, -1), count()
    given = Pair(
        pair.query, pair.key, pair.query_activation, pair.key_activation,
        pair.extra[: mask.extra_views],
    )  # fmt: skip

    @torch.no_grad()
    def once() -> object:
        return mask.views(given, Draws.of(0, next(epochs), torch.arange(rows)), shuffle)

    return once


@click.command()
@click.option("--size", default=224, help="Side of the views in px.")
@click.option("--grid", default=7)
@click.option("--batch", default=64)
@click.option("--rounds", default=7, help="Number of timed rounds, after one for warm-up.")
@click.option("--mask", "names", multiple=True, default=list(TO_LOOP), help="Only these masks.")
@click.option("--keep-memory", is_flag=True, help="Also for copies and loops.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    size: int,
    grid: int,
    batch: int,
    rounds: int,
    names: tuple[str, ...],
    keep_memory: bool,
    json_file: Path | None,
) -> None:
    """Prints ms per image of CPU time, and the ratios with their goals."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the loops draw from torch's generator
    keep_large_blocks()
    pair = random_pair(batch, size, grid)
    work: dict[str, Callable[[], object]] = {"copy": lambda: (pair.query.clone(), pair.key.clone())}
    loops = Loops(pair, grid)
    for name in names:
        assert name in MASKS
        mask = wire_mask(Choice(name, {}), MOCO, ViewConfig(size=size, grid=grid))
        work[name] = masking(mask, pair)
        if mask.masker:
            masker = mask.masker.requires_grad_(False)
            work["network"] = partial(masker, pair.query)
            loops.masker = masker
        work[f"{name} loop"] = getattr(loops, name)
    others = {name for name in work if name == "copy" or name.endswith("loop")}
    before = {name: release_memory if name in others else work[name] for name in work}
    times = interleaved(work, rounds, None if keep_memory else before)
    print(f"{batch} images, {size} px, grid {grid}, CPU time of one thread")
    for name in work:
        print(f"{name:32} {milliseconds(times, name, batch):7.2f} ms per image")
    ratios = {}
    for name in names:
        if name in TO_COPY:
            ratios[f"{name} / copy"] = (ratio(times, name, "copy"), TO_COPY[name])
        else:
            network = ratio(times, "network", "copy")
            ratios[f"{name} / copy"] = (ratio(times, name, "copy"), network + ADIOS_TO_COPY)
        ratios[f"{name} / loop"] = (ratio(times, name, f"{name} loop"), TO_LOOP[name])
    report(ratios, json_file)


if __name__ == "__main__":
    main()
