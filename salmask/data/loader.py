"""From a manifest to batches of cropped views on the device, in an order that (seed, epoch) fixes.

`stream` decodes and crops in worker processes; `resident` keeps every image on the device and
crops there. Both crop the same boxes; their interpolation differs, so it is part of the recipe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.ops import roi_align

from salmask.data import views
from salmask.data.decode import centre, resample
from salmask.data.manifest import Manifest, read_image
from salmask.data.worker_signals import ignore_stop_signals
from salmask.distributed import local_rows
from salmask.params.view import ViewConfig
from salmask.progress import progress
from salmask.randomness import Draws, epoch_order

BRANCHES = ("query", "key")
Ticket = tuple[int, int, Tensor]  # epoch, step in it, ids (B,)


def branches(extra_views: int = 0) -> tuple[str, ...]:
    """The names of the views that are cut from each image: query, key, extra0, extra1, ..."""
    return (*BRANCHES, *(f"extra{n}" for n in range(extra_views)))


@dataclass(frozen=True)
class Crops:
    """All views of a batch, before photometry. crops[branch]: (B,3,S,S) uint8 or float32 in
    [0,255]; boxes[branch]: (B,4); flips[branch]: (B,) bool; ids: (B,) int64."""

    epoch: int
    step: int
    ids: Tensor
    crops: dict[str, Tensor]
    boxes: dict[str, Tensor]
    flips: dict[str, Tensor]

    def to(self, device: torch.device) -> "Crops":
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> "Crops":
        """In memory that a GPU reads by itself; the loader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> "Crops":
        parts = (self.crops, self.boxes, self.flips)
        moved = ({name: move(part) for name, part in named.items()} for named in parts)
        return Crops(self.epoch, self.step, move(self.ids), *moved)


@dataclass(frozen=True)
class Schedule:
    """Which samples every step of a training shows to this process; begins again from any (epoch,
    step).

    ids: (n,) int64 training rows. The last, incomplete batch of an epoch is left out, unless all
    rows are to be seen (`whole`): once an epoch, in their order, by this process alone.
    """

    seed: int
    ids: Tensor
    batch: int
    epochs: int
    whole: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.ids) // self.batch) if self.whole else len(self.ids) // self.batch

    def tickets(self, epoch: int, step: int) -> Iterator[Ticket]:
        while epoch < self.epochs:
            order = self.ids if self.whole else epoch_order(self.seed, epoch, self.ids)
            while step < self.steps_per_epoch:
                rows = order[step * self.batch : (step + 1) * self.batch]
                yield epoch, step, rows if self.whole else local_rows(rows)
                step += 1
            epoch, step = epoch + 1, 0


class _Tickets(Sampler[Ticket]):
    def __init__(self, schedule: Schedule, epoch: int, step: int) -> None:
        self.schedule, self.epoch, self.step = schedule, epoch, step

    def __iter__(self) -> Iterator[Ticket]:
        return self.schedule.tickets(self.epoch, self.step)


class _Streamed(Dataset[Crops]):
    """Decodes, crops and flips one whole batch per item, in a worker."""

    def __init__(
        self, manifest: Manifest, config: ViewConfig, seed: int, branches: tuple[str, ...]
    ) -> None:
        self.manifest, self.config, self.seed = manifest, config, seed
        self.branches = branches

    def __getitem__(self, ticket: Ticket) -> Crops:
        epoch, step, ids = ticket
        branches = self.branches
        boxes, mirrored = geometry(self.manifest, self.config, self.seed, epoch, ids, branches)
        size = (self.config.size, self.config.size)
        rows: list[list[Tensor]] = []
        for i, row in enumerate(ids.tolist()):
            reach = min(float(boxes[branch][i, 2:].min()) for branch in branches)
            image = read_image(self.manifest, row, int(self.config.size / reach))
            rows.append([resample(image, size, boxes[branch][i]) for branch in branches])
        crops = {b: torch.stack([row[j] for row in rows]) for j, b in enumerate(branches)}
        crops = {b: mirror(crops[b], mirrored[b]) for b in branches}
        return Crops(epoch, step, ids, crops, boxes, mirrored)


def geometry(
    manifest: Manifest,
    config: ViewConfig,
    seed: int,
    epoch: int,
    ids: Tensor,
    branches: tuple[str, ...] = BRANCHES,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Boxes (B,4) and flips (B,) of each branch's view of `ids` in one epoch."""
    draws = Draws.of(seed, epoch, ids)
    sizes = manifest.sizes[ids]
    boxes = {b: views.crop_boxes(draws, b, sizes, config.crop, config.aspect) for b in branches}
    return boxes, {b: views.flips(draws, b, config.flip) for b in branches}


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Flips the chosen images left to right: (B,C,H,W), (B,) bool -> (B,C,H,W)."""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


class Resident:
    """Every training image on the device, padded to one canvas (n,3,Hmax,Wmax) uint8."""

    def __init__(self, manifest: Manifest, ids: Tensor, device: torch.device) -> None:
        height, width = (int(n) for n in manifest.sizes[ids].amax(0))
        self.canvas = torch.zeros((len(ids), 3, height, width), dtype=torch.uint8)
        with progress("load images", len(ids)) as bar:
            for slot, row in enumerate(ids.tolist()):
                image = read_image(manifest, row)
                pixels = resample(image, (int(manifest.sizes[row, 0]), int(manifest.sizes[row, 1])))
                # The last row and column twice: what lies past the rim must not blend in.
                rim = torch.nn.functional.pad(pixels.float(), (0, 1, 0, 1), mode="replicate")
                rim = rim[:, :height, :width].to(torch.uint8)
                self.canvas[slot, :, : rim.shape[1], : rim.shape[2]] = rim
                bar.advance(1)
        self.canvas = self.canvas.to(device)
        self.sizes = manifest.sizes[ids].to(device)
        self.slot = torch.full((len(manifest),), -1)
        self.slot[ids] = torch.arange(len(ids))
        self.slot = self.slot.to(device)

    def crop(self, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Boxes (B,4) of the images `ids` (B,), resampled to (B,3,size,size) float32 in [0,255].

        Averages several bilinear samples a pixel, so that shrinking does not alias.
        """
        slots = self.slot[ids]
        images = self.canvas[slots].float()
        high, wide = self.sizes[slots].unbind(1)
        y, x, h, w = boxes.unbind(1)
        corners = torch.stack([x * wide, y * high, (x + w) * wide, (y + h) * high], dim=1)
        index = torch.arange(len(ids), device=images.device, dtype=corners.dtype)
        rois = torch.cat([index[:, None], corners], dim=1)
        return roi_align(images, rois, (size, size), sampling_ratio=-1, aligned=True)


def pairs(
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
    """All batches of a training from `start` = (epoch, step) to its end, on `device`.

    images: `stream` or `resident`. workers: processes that decode for `stream`. branches: the
    views to make.
    """
    if images == "resident":
        yield from _resident_pairs(manifest, config, schedule, device, start, branches)
        return
    loader = DataLoader(
        _Streamed(manifest, config, schedule.seed, branches),
        sampler=_Tickets(schedule, *start),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    for crops in loader:
        yield crops.to(device)


def _resident_pairs(
    manifest: Manifest,
    config: ViewConfig,
    schedule: Schedule,
    device: torch.device,
    start: tuple[int, int],
    branches: tuple[str, ...],
) -> Iterator[Crops]:
    held = Resident(manifest, schedule.ids, device)
    for epoch, step, ids in schedule.tickets(*start):
        boxes, mirrored = geometry(manifest, config, schedule.seed, epoch, ids, branches)
        there = Crops(epoch, step, ids, {}, boxes, mirrored).to(device)
        crops = {
            b: mirror(held.crop(there.ids, there.boxes[b], config.size), there.flips[b])
            for b in branches
        }
        yield Crops(epoch, step, there.ids, crops, there.boxes, there.flips)


class _Centred(Dataset[Tensor]):
    def __init__(self, manifest: Manifest, ids: Tensor, size: int, shorter: int) -> None:
        self.manifest, self.ids, self.size, self.shorter = manifest, ids, size, shorter

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        row = int(self.ids[index])
        return centre(read_image(self.manifest, row, self.shorter), self.size, self.shorter)


def centred(
    manifest: Manifest,
    ids: Tensor,
    size: int,
    shorter: int,
    *,
    batch: int,
    device: torch.device,
    workers: int,
) -> Iterator[Tensor]:
    """The evaluation views of `ids`, in order: batches (b,3,size,size) float32 in [0,1]."""
    loader = DataLoader(
        _Centred(manifest, ids, size, shorter),
        batch_size=batch,
        num_workers=workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=device.type == "cuda",
    )
    for images in loader:
        yield images.to(device, non_blocking=True).float() / 255
