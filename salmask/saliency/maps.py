"""SCDA over a whole manifest, into a store."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from salmask.config import SaliencyConfig
from salmask.data.images import resample
from salmask.data.manifest import Manifest, read_image
from salmask.job import Job
from salmask.progress import progress
from salmask.saliency import store
from salmask.saliency.localizers import Localizer, Trunk
from salmask.saliency.scda import activation_map


class _Squashed(Dataset[list[Tensor]]):
    """Whole images at every level, decoded once: per row, a list of (3,S,S) uint8."""

    def __init__(self, manifest: Manifest, rows: range, levels: tuple[int, ...]) -> None:
        self.manifest, self.rows, self.levels = manifest, rows, levels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = read_image(self.manifest, self.rows[index], max(self.levels))
        return [resample(image, (level, level)) for level in self.levels]


def plan(manifest: Manifest, config: SaliencyConfig, spec: Localizer) -> store.Plan:
    """The store that this manifest, this configuration and this localizer lead to."""
    trunk = Trunk(spec)
    grids = {}
    with torch.inference_mode():
        for level in config.levels:
            u, v = trunk(torch.zeros(1, 3, level, level)).shape[2:]
            grids[level] = (int(u), int(v))
    attributes = {"manifest": manifest.digest, "localizer": json.loads(json.dumps(asdict(spec)))}
    return store.Plan(len(manifest), config.shard_rows, grids, attributes)


def compute(
    path: Path, plan: store.Plan, manifest: Manifest, trunk: Trunk, batch: int, job: Job
) -> None:
    """Fills the store at `path`, resuming by shard.

    Batches never cross a shard's start and are padded to one size, so that the bytes depend
    neither on where an earlier try stopped nor on who computed which shard.
    """
    done = sum(len(plan.shard(i)) for i in store.done_shards(path, plan)) if path.exists() else 0
    with progress("saliency", len(manifest), done=done) as bar:

        def of_rows(rows: range) -> Mapping[int, Tensor]:
            parts: dict[int, list[Tensor]] = {level: [] for level in plan.grids}
            for images in _batches(manifest, rows, tuple(plan.grids), batch, job):
                for level, pixels in zip(plan.grids, images, strict=True):
                    parts[level].append(_activation(trunk, pixels, batch, job.device))
                bar.advance(len(images[0]))
            return {level: torch.cat(found) for level, found in parts.items()}

        store.fill(path, plan, of_rows)


def _batches(
    manifest: Manifest, rows: range, levels: tuple[int, ...], batch: int, job: Job
) -> Iterator[list[Tensor]]:
    yield from DataLoader(
        _Squashed(manifest, rows, levels),
        batch_size=batch,
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
    )


@torch.inference_mode()
def _activation(trunk: Trunk, pixels: Tensor, batch: int, device: torch.device) -> Tensor:
    count = len(pixels)
    padded = torch.cat([pixels, pixels.new_zeros(batch - count, *pixels.shape[1:])])
    images = padded.to(device, non_blocking=True).float() / 255
    return activation_map(trunk(images))[:count].cpu()
