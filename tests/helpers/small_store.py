"""A small saliency store, for tests of stores."""

from dataclasses import replace

import torch

from salmask.saliency import store
from salmask.saliency.store import SaliencyStore
from salmask.saliency.store_rows import Maps, StorePlan, scaled

ROWS, SHARD = 10, 4  # shards of 4, 4 and 2
GRIDS = {64: (2, 2), 128: (4, 3)}
LOCALIZER = {"name": "toy", "source": "0" * 64}
PLAN = StorePlan(ROWS, SHARD, GRIDS, {"manifest": "m" * 64, "localizer": LOCALIZER})
CORRECTED = replace(PLAN, correction=8)
MAPS = {
    level: torch.rand(ROWS, *grid, generator=torch.Generator().manual_seed(level)) * 1000
    for level, grid in GRIDS.items()
}
SHA256 = torch.arange(1, 1 + ROWS * 3).view(ROWS, 3).repeat(1, 11)[:, :32].to(torch.uint8)
REPAIR = r"remove the folder .* and run `dvc repro` again"  # in a folder of unfinished work


def part(rows: range, raw=MAPS, sha256=SHA256) -> Maps:
    """Some rows of raw maps, as a store holds them."""
    some = slice(rows.start, rows.stop)
    return scaled({level: maps[some] for level, maps in raw.items()}, sha256[some])


def compute(shards):
    return (part(rows) for rows in shards)


def fill(path, plan: StorePlan, compute) -> None:
    """Writes all shards that are not done. compute: row ranges of shards -> the maps of each."""
    store.create(path, plan)
    done = store.done_shards(path, plan)
    todo = [index for index in range(plan.shards) if index not in done]
    maps_of_shards = compute([plan.shard(index) for index in todo])
    for index, maps in zip(todo, maps_of_shards, strict=True):
        store.write_shard(path, plan, index, maps)


def fill_one(path, raw: torch.Tensor) -> torch.Tensor:
    """A store of raw maps (n,U,V) at one level, and what is read from it."""
    plan = StorePlan(len(raw), len(raw), {64: tuple(raw.shape[1:])}, PLAN.attributes)
    fill(path, plan, lambda shards: (part(rows, {64: raw}) for rows in shards))
    return SaliencyStore.open(path).activation(torch.arange(len(raw)), 64)
