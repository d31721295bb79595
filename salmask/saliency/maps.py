"""SCDA activation maps of all images of a manifest, written to a store."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from salmask.data.manifest import Manifest, verified_image
from salmask.data.prefetch import on_device
from salmask.data.resample import resample
from salmask.data.views import crop_boxes
from salmask.data.worker_processes import load_batches
from salmask.devices import inference
from salmask.errors import UserError
from salmask.job import Job
from salmask.params.saliency import SaliencyConfig
from salmask.progress import progress
from salmask.randomness import Draws
from salmask.saliency import correction, crops, store
from salmask.saliency.scda import activation_map
from salmask.saliency.store_rows import Maps, StorePlan, scaled
from salmask.saliency.trunks import Localizer, Trunk

_CROP, _ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)  # of MoCo's views, on which the correction is fitted
log = logging.getLogger(__name__)
LevelImages = tuple[list[Tensor], str]  # (3,S,S) uint8 per level; problem of the image, or ""


class _Images(Dataset[LevelImages]):
    """Images of a manifest, resized to every level; with boxes (N,4), the views in the boxes."""

    def __init__(
        self, manifest: Manifest, rows: Tensor, levels: Sequence[int], boxes: Tensor | None = None
    ) -> None:
        self.manifest, self.rows, self.levels, self.boxes = manifest, rows, levels, boxes

    def __getitem__(self, index: int) -> LevelImages:
        box = None if self.boxes is None else self.boxes[index]
        share = 1.0 if box is None else float(box[2:].min())  # of the image's side
        row = int(self.rows[index])
        image, problem = verified_image(self.manifest, row, int(max(self.levels) / share))
        return [resample(image, (level, level), box) for level in self.levels], problem or ""


def _batches(
    images: _Images, batches: list[list[int]], job: Job
) -> Iterator[tuple[list[Tensor], list[str]]]:
    loaded = load_batches(
        images,
        batch_sampler=batches,
        workers=job.workers if batches else 0,
        batch_bytes=sum(3 * level**2 for level in images.levels)
        * max(map(len, batches), default=0),
        pin_memory=job.device.type == "cuda",
    )
    return on_device(loaded, job.device)


def plan(manifest: Manifest, config: SaliencyConfig, spec: Localizer) -> StorePlan:
    """Shape and identity of the store for a manifest, a configuration and a localizer."""
    trunk = Trunk(spec)
    grids = {}
    with torch.inference_mode():
        for level in config.levels:
            u, v = trunk(torch.zeros(1, 3, level, level)).shape[2:]
            grids[level] = (int(u), int(v))
    attributes = {"manifest": manifest.digest, "localizer": json.loads(json.dumps(asdict(spec)))}
    shard_rows = config.rows_per_shard(len(manifest))
    return StorePlan(len(manifest), shard_rows, grids, attributes, config.correction)


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
    """Computes the missing shards of a store. Returns whether the store has all shards.

    Batches have one size (they are padded) and never span shards. A row is therefore the same
    whether or not the computation was interrupted or shared. A process that is killed loses at most
    the shard that it was working on. `finish` completes the store.

    Args:
        path: of the store.
        plan: of the store.
        manifest: of the images.
        trunk: the localizer.
        config: batch size and precision.
        job: device and worker processes.
        earlier: finished stores with the same code, parameters and localizer for other images. Maps
            of the same images are copied from them.
        share: (k, n) computes the shards k, k+n, k+2n..., while other processes compute the others.
    """
    store.create(path, plan)
    done = store.done_shards(path, plan)
    own = range(share[0], plan.shards, share[1])
    todo = [index for index in own if index not in done]
    total, left = (sum(len(plan.shard(index)) for index in part) for part in (own, todo))
    digests = _digests(manifest)
    source, position = _best_earlier(earlier, digests)
    if source is not None:
        count = (position >= 0).sum()
        print(f"{count} of {plan.rows} maps are copied from an earlier store", flush=True)
    chunks = {
        index: _chunks([row for row in plan.shard(index) if position[row] < 0], config.batch)
        for index in todo
    }
    images = _Images(manifest, torch.arange(len(manifest)), list(plan.grids))
    batches = _batches(images, [rows for of_shard in chunks.values() for rows in of_shard], job)
    with progress("saliency", total, done=total - left) as bar:
        for index in todo:
            shard = plan.shard(index)
            raw: dict[int, list[Tensor]] = {level: [] for level in plan.grids}
            sha256 = digests[shard.start : shard.stop].clone()
            for rows in chunks[index]:
                pixels, problems = next(batches)
                for level, images_at_level in zip(plan.grids, pixels, strict=True):
                    raw[level].append(score_batch(trunk, images_at_level, config, job.device))
                for row, problem in zip(rows, problems, strict=True):
                    if problem:
                        log.warning("%s: %s; its map is empty", manifest.paths[row], problem)
                        sha256[row - shard.start] = 0
                bar.advance(len(rows))
            known = position[shard.start : shard.stop]
            store.write_shard(path, plan, index, _merged(raw, sha256, known, source, plan))
            bar.advance(int((known >= 0).sum()))
    return len(store.done_shards(path, plan)) == plan.shards


def finish(
    path: Path, plan: StorePlan, manifest: Manifest, trunk: Trunk, config: SaliencyConfig, job: Job
) -> Tensor:
    """Fits the correction of a store that has all shards.

    Returns the rows (k,) int64 of images that were missing or had changed since `prepare`. Their
    maps are zero, which makes all cells foreground.
    """
    store.tidy(path)
    rows = store.read_rows(path)
    if not rows.known.any():
        raise UserError(f"none of the {plan.rows} images can still be read: run `dvc repro`")
    if plan.correction:
        store.write_correction(path, _correction(rows, plan, manifest, trunk, config, job))
    return torch.nonzero(~rows.known)[:, 0]


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _digests(manifest: Manifest) -> Tensor:
    """sha256 of the images: (N,32) uint8."""
    return torch.from_numpy(manifest.sha256.raw)


def _best_earlier(earlier: Sequence[Path], digests: Tensor) -> tuple[Maps | None, Tensor]:
    """The earlier store with most of the images, and the row of each image in it: (N,), or -1."""
    best, best_position = None, torch.full((len(digests),), -1)
    if not earlier:
        return best, best_position
    keys = [bytes(digest) for digest in digests.numpy()]
    for path in earlier:
        try:
            rows = store.read_rows(path)
        except UserError as error:
            log.warning("%s; not reused", error)
            continue
        row_of = {bytes(digest): row for row, digest in enumerate(rows.sha256.numpy())}
        position = torch.tensor([row_of.get(key, -1) for key in keys])
        if (position >= 0).sum() > (best_position >= 0).sum():
            best, best_position = rows, position
    return best, best_position


def _merged(
    raw: dict[int, list[Tensor]],
    sha256: Tensor,
    known: Tensor,
    earlier: Maps | None,
    plan: StorePlan,
) -> Maps:
    """The rows of a shard: copied from an earlier store where `known` >= 0, else computed."""
    fresh = known < 0
    grids = plan.grids.items()
    computed = {
        n: torch.cat([torch.empty(0, *grid), *(p.cpu() for p in raw[n])]) for n, grid in grids
    }
    new = scaled(computed, sha256[fresh])
    if earlier is None:
        return new
    old = earlier.pick(known[~fresh])
    order = torch.cat([torch.nonzero(fresh), torch.nonzero(~fresh)])[:, 0].argsort()
    both = Maps(
        {n: torch.cat([new.activation[n], old.activation[n]]) for n in plan.grids},
        {n: torch.cat([new.mean[n], old.mean[n]]) for n in plan.grids},
        torch.cat([new.sha256, old.sha256]),
    )
    return both.pick(order)


@torch.inference_mode()
def score_batch(
    trunk: Trunk, pixels: Tensor, config: SaliencyConfig, device: torch.device
) -> Tensor:
    """The activation maps of images: (n,3,S,S) uint8, at most one batch -> (n,U,V) float32 on the
    device."""
    count = len(pixels)
    if missing := config.batch - count:
        pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
    images = pixels.to(device, non_blocking=True).float() / 255
    with inference(device, config.precision):
        return activation_map(trunk(images.contiguous(memory_format=torch.channels_last)))[:count]


def _correction(
    rows: Maps, plan: StorePlan, manifest: Manifest, trunk: Trunk, config: SaliencyConfig, job: Job
) -> correction.Correction:
    """Fits a store's correction on views of its images, at the first level."""
    ids, boxes = sample_views(manifest, rows.known, plan.correction)
    level = min(plan.grids)
    views = _Images(manifest, ids, [level], boxes)
    own, readable = [], []
    with progress("saliency: correction", len(ids)) as bar:
        for pixels, problems in _batches(views, _chunks(list(range(len(ids))), config.batch), job):
            own.append(score_batch(trunk, pixels[0], config, job.device).cpu())
            readable += [not problem for problem in problems]
            bar.advance(len(pixels[0]))
    kept = torch.tensor(readable)  # an image may vanish after its maps were computed
    if not kept.any():
        raise UserError("no image can still be read: run `dvc repro`")
    ids, boxes = ids[kept], boxes[kept]
    view_crops = {
        n: crops.resample(maps[ids].float(), boxes, plan.grids[level], correction.MARGIN)
        for n, maps in rows.activation.items()
    }
    return correction.fit(view_crops, crops.zoom_of(boxes), torch.cat(own)[kept])


def sample_views(manifest: Manifest, usable: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Random resized crops of images, distributed evenly over the images.

    Args:
        manifest: of the images.
        usable: (N,) bool, the rows to use.
        count: number of crops.

    Returns:
        Rows (count,) int64 and boxes (count,4).
    """
    ids = torch.nonzero(usable)[:, 0]
    order = ids[Draws.of(0, 0, ids).uniform("correction", 1)[:, 0].argsort()]
    rounds = [order[: max(0, count - start)] for start in range(0, count, max(1, len(order)))]
    boxes = [
        crop_boxes(Draws.of(0, k, some), "correction", manifest.sizes[some], _CROP, _ASPECT)
        for k, some in enumerate(rounds)
    ]
    return torch.cat(rounds), torch.cat(boxes)
