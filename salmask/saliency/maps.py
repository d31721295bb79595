"""SCDA over a whole manifest, into a store."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.backends import cudnn
from torch.utils.data import DataLoader, Dataset

from salmask.data.manifest import Manifest, verified_image
from salmask.data.resample import resample
from salmask.data.views import crop_boxes
from salmask.data.worker_signals import ignore_stop_signals
from salmask.devices import autocast
from salmask.errors import UserError
from salmask.job import Job
from salmask.params.saliency import SaliencyConfig
from salmask.progress import progress
from salmask.randomness import Draws
from salmask.saliency import correction, crops, store
from salmask.saliency.scda import activation_map
from salmask.saliency.store import Maps, StorePlan
from salmask.saliency.trunks import Localizer, Trunk

_CROP, _ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)  # MoCo's views, which the correction learns from
log = logging.getLogger(__name__)
Squashed = tuple[list[Tensor], str]  # (3,S,S) uint8 per level, and why it is a stand-in, or ""


class _Images(Dataset[Squashed]):
    """Rows of a manifest as whole images at every level, decoded once; or, given boxes (N,4) and
    one level, as the views in them."""

    def __init__(
        self, manifest: Manifest, rows: Tensor, levels: Sequence[int], boxes: Tensor | None = None
    ) -> None:
        self.manifest, self.rows, self.levels, self.boxes = manifest, rows, levels, boxes

    def __getitem__(self, index: int) -> Squashed:
        box = None if self.boxes is None else self.boxes[index]
        reach = 1.0 if box is None else float(box[2:].min())
        row = int(self.rows[index])
        image, problem = verified_image(self.manifest, row, int(max(self.levels) / reach))
        return [resample(image, (level, level), box) for level in self.levels], problem or ""


def _together(items: list[Squashed]) -> tuple[list[Tensor], list[str]]:
    levels = zip(*(images for images, _ in items), strict=True)
    return [torch.stack(images) for images in levels], [problem for _, problem in items]


def _batches(
    images: _Images, batches: list[list[int]], job: Job
) -> Iterator[tuple[list[Tensor], list[str]]]:
    yield from DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=_together,
        num_workers=job.workers if batches else 0,
        worker_init_fn=ignore_stop_signals,
        pin_memory=job.device.type == "cuda",
    )


def plan(manifest: Manifest, config: SaliencyConfig, spec: Localizer) -> StorePlan:
    """The store that this manifest, this configuration and this localizer lead to."""
    trunk = Trunk(spec)
    grids = {}
    with torch.inference_mode():
        for level in config.levels:
            u, v = trunk(torch.zeros(1, 3, level, level)).shape[2:]
            grids[level] = (int(u), int(v))
    attributes = {"manifest": manifest.digest, "localizer": json.loads(json.dumps(asdict(spec)))}
    return StorePlan(len(manifest), config.shard_rows, grids, attributes, config.correction)


def fill(
    path: Path,
    plan: StorePlan,
    manifest: Manifest,
    trunk: Trunk,
    config: SaliencyConfig,
    job: Job,
    earlier: Sequence[Path] = (),
    share: tuple[int, int] = (0, 1),
) -> bool:
    """Computes the store at `path`, resuming by shard; `finish` then completes it.

    earlier: finished stores of the same code, parameters and localizer over other images; what
    they hold of these images is copied. share: (k, n), to compute every n-th shard from the k-th,
    while other processes compute the others. Batches are padded to one size and never span
    shards, so that a row's bytes depend neither on where an earlier try stopped, nor on who
    computed what. Returns whether all shards are there.
    """
    own = range(share[0], plan.shards, share[1])
    ready = set(own) & store.done_shards(path, plan) if path.exists() else set()
    total, done = (sum(len(plan.shard(i)) for i in part) for part in (own, ready))
    digests = _digests(manifest)
    held, place = _held(earlier, digests)
    if held is not None:
        print(f"{(place >= 0).sum()} of {plan.rows} maps are an earlier store's", flush=True)
    with progress("saliency", total, done=done) as bar:

        def of_shards(shards: list[range]) -> Iterator[Maps]:
            missing = [[row for row in rows if place[row] < 0] for rows in shards]
            parts = [_chunks(rows, config.batch) for rows in missing]
            images = _Images(manifest, torch.arange(len(manifest)), list(plan.grids))
            batches = _batches(images, [chunk for chunks in parts for chunk in chunks], job)
            for rows, chunks in zip(shards, parts, strict=True):
                raw: dict[int, list[Tensor]] = {level: [] for level in plan.grids}
                sha256 = digests[rows.start : rows.stop].clone()
                for chunk in chunks:
                    pixels, problems = next(batches)
                    for level, squashed in zip(plan.grids, pixels, strict=True):
                        raw[level].append(_activation(trunk, squashed, config, job.device))
                    for row, problem in zip(chunk, problems, strict=True):
                        if problem:
                            log.warning("%s: %s; its map is empty", manifest.paths[row], problem)
                            sha256[row - rows.start] = 0
                    bar.advance(len(chunk))
                known = place[rows.start : rows.stop]
                yield _merged(raw, sha256, known, held, plan)
                bar.advance(int((known >= 0).sum()))

        return store.fill(path, plan, of_shards, own)


def finish(
    path: Path, plan: StorePlan, manifest: Manifest, trunk: Trunk, config: SaliencyConfig, job: Job
) -> Tensor:
    """Fits the correction of a store that has all its shards.

    Returns the rows (k,) int64 of images that are no longer those of the manifest: their maps are
    zero, which is all foreground.
    """
    store.tidy(path)
    rows = store.read_rows(path)
    if not rows.known.any():
        raise UserError(f"none of the {plan.rows} images can be read any more: run `dvc repro`")
    if plan.correction:
        store.write_correction(path, _correction(rows, plan, manifest, trunk, config, job))
    return torch.nonzero(~rows.known)[:, 0]


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _digests(manifest: Manifest) -> Tensor:
    """The images' sha256: (N,32) uint8."""
    raw = bytearray.fromhex("".join(manifest.sha256.tolist()))
    return torch.from_numpy(np.frombuffer(raw, np.uint8)).view(-1, 32)


def _held(earlier: Sequence[Path], digests: Tensor) -> tuple[Maps | None, Tensor]:
    """The earlier store that holds most of these images, and each one's row in it (N,), or -1."""
    best, found = None, torch.full((len(digests),), -1)
    wanted = [bytes(digest) for digest in digests.numpy()]
    for path in earlier:
        try:
            rows = store.read_rows(path)
        except UserError as error:
            log.warning("%s; not reused", error)
            continue
        row_of = {bytes(digest): row for row, digest in enumerate(rows.sha256.numpy())}
        place = torch.tensor([row_of.get(digest, -1) for digest in wanted])
        if (place >= 0).sum() > (found >= 0).sum():
            best, found = rows, place
    return best, found


def _merged(
    raw: dict[int, list[Tensor]], sha256: Tensor, known: Tensor, held: Maps | None, plan: StorePlan
) -> Maps:
    """A shard's rows: those that an earlier store holds, and those that were computed."""
    fresh = known < 0
    grids = plan.grids.items()
    computed = {
        n: torch.cat([torch.empty(0, *grid), *(p.cpu() for p in raw[n])]) for n, grid in grids
    }
    new = store.scaled(computed, sha256[fresh])
    if held is None:
        return new
    old = held.pick(known[~fresh])
    order = torch.cat([torch.nonzero(fresh), torch.nonzero(~fresh)])[:, 0].argsort()
    both = Maps(
        {n: torch.cat([new.activation[n], old.activation[n]]) for n in plan.grids},
        {n: torch.cat([new.mean[n], old.mean[n]]) for n in plan.grids},
        torch.cat([new.sha256, old.sha256]),
    )
    return both.pick(order)


@torch.inference_mode()
def _activation(
    trunk: Trunk, pixels: Tensor, config: SaliencyConfig, device: torch.device
) -> Tensor:
    """(n,3,S,S) uint8, n up to a batch -> (n,U,V) float32 on the device."""
    count = len(pixels)
    if missing := config.batch - count:  # pinned memory stays pinned where nothing is
        pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
    images = pixels.to(device, non_blocking=True).float() / 255
    # TensorFloat-32 would make float32 another number on a GPU than on a CPU.
    with autocast(device, config.precision), cudnn.flags(enabled=True, allow_tf32=False):
        return activation_map(trunk(images.contiguous(memory_format=torch.channels_last)))[:count]


def _correction(
    rows: Maps, plan: StorePlan, manifest: Manifest, trunk: Trunk, config: SaliencyConfig, job: Job
) -> correction.Correction:
    """Fits a store's correction on views of its images, seen at its first level."""
    ids, boxes = sample_views(manifest, rows.known, plan.correction)
    level = min(plan.grids)
    views = _Images(manifest, ids, [level], boxes)
    own, fine = [], []
    with progress("saliency: correction", len(ids)) as bar:
        for pixels, problems in _batches(views, _chunks(list(range(len(ids))), config.batch), job):
            own.append(_activation(trunk, pixels[0], config, job.device).cpu())
            fine += [not problem for problem in problems]
            bar.advance(len(pixels[0]))
    kept = torch.tensor(fine)  # an image may be lost between its maps and its view
    if not kept.any():
        raise UserError("no image can be read any more: run `dvc repro`")
    ids, boxes = ids[kept], boxes[kept]
    seen = {
        n: crops.resample(maps[ids].float(), boxes, plan.grids[level], correction.MARGIN)
        for n, maps in rows.activation.items()
    }
    return correction.fit(seen, crops.zoom_of(boxes), torch.cat(own)[kept])


def sample_views(manifest: Manifest, usable: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` random resized crops of the usable (N,) rows, as few of one image as can be: rows
    (count,) int64 and boxes (count,4)."""
    ids = torch.nonzero(usable)[:, 0]
    order = ids[Draws.of(0, 0, ids).uniform("correction", 1)[:, 0].argsort()]
    rounds = [order[: max(0, count - start)] for start in range(0, count, max(1, len(order)))]
    boxes = [
        crop_boxes(Draws.of(0, k, some), "correction", manifest.sizes[some], _CROP, _ASPECT)
        for k, some in enumerate(rounds)
    ]
    return torch.cat(rounds), torch.cat(boxes)
