"""Batches of views on the device, in an order that depends on (seed, epoch) only.

`stream` decodes and crops images in worker processes. `auto` gives the same bytes, but decodes each
image once if all of them fit into memory. `resident` keeps all images on the device and crops them
there. It uses the same boxes, but interpolates differently, so that this choice is part of the
recipe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from salmask.data.decoded import DecodedImages, rows_to_keep
from salmask.data.manifest import Manifest, is_replacement, read_image
from salmask.data.prefetch import map_tensors, on_device
from salmask.data.resample import centre_crop, resample
from salmask.data.resident import ResidentImages
from salmask.data.views import BRANCHES, flip_images, view_geometry
from salmask.data.worker_processes import load_batches
from salmask.distributed import local_rows, world_size
from salmask.params.view import ViewConfig
from salmask.randomness import epoch_order

BatchKey = tuple[int, int, Tensor]  # epoch, step within the epoch, ids (B,)


@dataclass(frozen=True)
class Crops:
    """All views of a batch, before photometry.

    Args:
        epoch: number of the epoch.
        step: number of the batch within the epoch.
        ids: (B,) int64, rows of the manifest.
        crops: by branch, (B, 3, S, S) uint8, or float32 in [0, 255].
        boxes: by branch, (B, 4) float32: y, x, height and width in [0, 1].
        flips: by branch, (B,) bool.
    """

    epoch: int
    step: int
    ids: Tensor
    crops: dict[str, Tensor]
    boxes: dict[str, Tensor]
    flips: dict[str, Tensor]

    def to(self, device: torch.device) -> "Crops":
        return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), self)

    def pin_memory(self) -> "Crops":
        """A copy in page-locked memory; the DataLoader calls this."""
        return map_tensors(Tensor.pin_memory, self)


@dataclass(frozen=True)
class Schedule:
    """The images of every training step on this process, from any (epoch, step) on.

    Args:
        seed: of the order of the images.
        ids: (n,) int64, rows of the manifest to train on.
        batch: global batch size.
        epochs: number of epochs.
        whole: False shuffles the images, shares each batch between the processes and drops the
            last, incomplete batch of an epoch. True gives all images in order to this process.
    """

    seed: int
    ids: Tensor
    batch: int
    epochs: int
    whole: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.ids) // self.batch) if self.whole else len(self.ids) // self.batch

    def batches(self, epoch: int, step: int) -> Iterator[BatchKey]:
        while epoch < self.epochs:
            order = self.ids if self.whole else epoch_order(self.seed, epoch, self.ids)
            while step < self.steps_per_epoch:
                rows = order[step * self.batch : (step + 1) * self.batch]
                yield epoch, step, rows if self.whole else local_rows(rows)
                step += 1
            epoch, step = epoch + 1, 0


def training_views(
    manifest: Manifest,
    config: ViewConfig,
    schedule: Schedule,
    *,
    images: str,
    device: torch.device,
    workers: int,
    start: tuple[int, int] = (0, 0),
    branches: tuple[str, ...] = BRANCHES,
) -> Iterator[Crops]:
    """All batches of a training, on `device`.

    Args:
        manifest: the manifest.
        config: section `view`.
        schedule: the images of each step.
        images: `auto`, `stream` or `resident`.
        device: of the batches.
        workers: processes that decode images, except for `resident`.
        start: (epoch, step) of the first batch.
        branches: names of the views.
    """
    if images == "resident":
        resident = ResidentImages(manifest, schedule.ids, device)
        for epoch, step, ids in schedule.batches(*start):
            sizes = manifest.sizes[ids]
            boxes, flips = view_geometry(sizes, config, schedule.seed, epoch, ids, branches)
            views = Crops(epoch, step, ids, {}, boxes, flips).to(device)
            for b in branches:
                crops = resident.crop(ids, views.boxes[b], config.size)
                views.crops[b] = flip_images(crops, views.flips[b])
            yield views
        return
    keeps = images == "auto"
    kept = rows_to_keep(manifest, schedule.ids, config.size) if keeps else schedule.ids[:0]
    decoded = DecodedImages(manifest, kept)
    share = schedule.batch if schedule.whole else schedule.batch // world_size()
    batches = load_batches(
        _StreamedViews(manifest, decoded, config, schedule.seed, branches),
        sampler=schedule.batches(*start),
        batch_size=None,
        workers=workers,
        batch_bytes=3 * config.size**2 * share * len(branches),
        pin_memory=device.type == "cuda",
    )
    yield from on_device(batches, device)


@dataclass(frozen=True)
class _StreamedViews(Dataset[Crops]):
    """Decodes, crops and flips one batch per item, in a worker process."""

    manifest: Manifest
    decoded: DecodedImages
    config: ViewConfig
    seed: int
    branches: tuple[str, ...]

    def __getitem__(self, key: BatchKey) -> Crops:
        epoch, step, ids = key
        branches, size = self.branches, self.config.size
        sizes = self.manifest.sizes[ids]
        boxes, flips = view_geometry(sizes, self.config, self.seed, epoch, ids, branches)
        shortest = torch.stack([boxes[b][:, 2:].amin(dim=1) for b in branches]).amin(dim=0).tolist()
        crops = {b: torch.empty(len(ids), 3, size, size, dtype=torch.uint8) for b in branches}
        for i, row in enumerate(ids.tolist()):
            image = self.decoded.read(row, int(size / shortest[i]))
            for b in branches:
                crops[b][i] = resample(image, (size, size), boxes[b][i], bool(flips[b][i]))
        return Crops(epoch, step, ids, crops, boxes, flips)


def evaluation_images(
    manifest: Manifest,
    ids: Tensor,
    size: int,
    shorter: int,
    *,
    batch: int,
    device: torch.device,
    workers: int,
    on_lost: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """The centre crops of some images, in order: batches (b, 3, size, size) float32 in [0, 1].

    Args:
        manifest: the manifest.
        ids: (n,) int64, rows of the manifest.
        size: side of the crop in px.
        shorter: length in px to which the shorter side of the image is resized.
        batch: images per batch.
        device: of the batches.
        workers: processes that decode images.
        on_lost: called before a batch with images that could not be read and are gray.
    """
    batches = load_batches(
        ids.tolist(),
        batch_size=batch,
        collate_fn=partial(_centre_crops, manifest, size, shorter),
        workers=workers,
        batch_bytes=3 * size**2 * batch,
        pin_memory=device.type == "cuda",
    )
    for images, lost in on_device(batches, device):
        if lost and on_lost is not None:
            on_lost()
        yield images.float() / 255


def _centre_crops(
    manifest: Manifest, size: int, shorter: int, rows: list[int]
) -> tuple[Tensor, int]:
    """The images of some rows, in a worker process: (n, 3, size, size) uint8, and how many of them
    could not be read."""
    crops, lost = [], 0
    for row in rows:
        image = read_image(manifest, row, shorter)
        lost += is_replacement(image)
        crops.append(centre_crop(image, size, shorter))
    return torch.stack(crops), lost
