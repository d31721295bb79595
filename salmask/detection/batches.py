"""Images and what is in them, as a detector is fed: resized, mirrored, in the order of a seed."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from salmask.data.decode import decode
from salmask.data.file_bytes import ImageError, missing_folder
from salmask.data.resample import resample
from salmask.data.worker_signals import ignore_stop_signals
from salmask.detection.objects import Annotations, Picture
from salmask.distributed import local_rows
from salmask.errors import DataGoneError
from salmask.randomness import Draws, epoch_order

log = logging.getLogger(__name__)
Example = tuple[Tensor, dict[str, Tensor]]  # image (3,H,W) uint8, target as `Detector` says
_GRAY = (124, 116, 104)


@dataclass(frozen=True)
class Resizing:
    """short_sides: px, one of them drawn for each image. long_side: px, at most. flip: the share of
    images that are mirrored."""

    short_sides: tuple[int, ...]
    long_side: int = 1333
    flip: float = 0.5


def trainable(annotations: Annotations, difficult: bool = True) -> list[Picture]:
    """The pictures with objects to learn from, and those alone in them: no crowds, and VOC's
    difficult ones only if asked for (as usual they are learned, though never scored)."""
    found = []
    for picture in annotations.pictures:
        keep = np.ones(len(picture), dtype=bool)
        if annotations.rule == "coco" or not difficult:
            keep = ~picture.ignored
        if keep.any():
            found.append(_some(picture, keep))
    return found


def training_batches(
    pictures: Sequence[Picture],
    looks: Resizing,
    *,
    seed: int,
    batch: int,
    start: int,
    end: int,
    masks: bool,
    workers: int,
) -> Iterator[list[Example]]:
    """This process's part of the batches of iterations `start` to `end`; batch: images of all
    processes. Each epoch visits all pictures once, in an order of its own; how one looks, and the
    `key` of its further random numbers, depend on (seed, epoch, picture) alone."""
    part = local_rows(torch.arange(batch)).tolist()
    items = _Training(pictures, looks, seed, batch, part, masks)
    order = range(start, end)
    return iter(
        DataLoader(
            items,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
        )
    )


def whole_images(
    pictures: Sequence[Picture], short_side: int, long_side: int, workers: int
) -> Iterator[Tensor]:
    """Every picture's image (3,H,W) uint8 at the size that it is searched at, in order."""
    items = _Testing(pictures, short_side, long_side)
    return iter(
        DataLoader(items, batch_size=None, num_workers=workers, worker_init_fn=ignore_stop_signals)
    )


def resized(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width in px with the short side as asked for, or the long one at its limit."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def example(picture: Picture, size: tuple[int, int], flip: bool, masks: bool) -> Example:
    """A picture at size (height, width) px, mirrored or not, with its objects."""
    image = resample(read(picture), size)
    scale = np.array([size[1] / picture.width, size[0] / picture.height] * 2)
    boxes = torch.from_numpy(picture.boxes * scale).float()
    target = {"boxes": boxes, "labels": torch.from_numpy(picture.labels) + 1}
    if masks:
        assert picture.masks is not None
        drawn = torch.from_numpy(coco_masks.decode(list(picture.masks))).permute(2, 0, 1)
        target["masks"] = torch.nn.functional.interpolate(drawn[None], size, mode="nearest")[0]
    if flip:
        image = image.flip(2)
        left, top, right, bottom = boxes.unbind(1)
        target["boxes"] = torch.stack([size[1] - right, top, size[1] - left, bottom], dim=1)
        if masks:
            target["masks"] = target["masks"].flip(2)
    there = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(dim=1)  # by float32, that is
    return image, {name: value[there] for name, value in target.items()}


def read(picture: Picture) -> Image.Image:
    """The image; a gray one, told once, where it broke or changed since it was listed. Raises
    DataGoneError when its whole folder is gone."""
    try:
        image = decode(picture.file)
        if image.size == (picture.width, picture.height):
            return image
        said = f"it is {image.size[0]}x{image.size[1]} px, not {picture.width}x{picture.height}"
    except ImageError as error:
        if told := missing_folder(picture.file.parent):
            raise DataGoneError(told) from None
        said = str(error)
    _tell(picture.file, said)
    return Image.new("RGB", (picture.width, picture.height), _GRAY)


@cache
def _tell(file: Path, said: str) -> None:
    log.warning("%s: %s; a gray image stands in", file, said)


class _Training(Dataset[list[Example]]):
    """An iteration -> this process's part of its batch."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        looks: Resizing,
        seed: int,
        batch: int,
        part: Sequence[int],
        masks: bool,
    ) -> None:
        self.pictures, self.looks, self.seed = pictures, looks, seed
        self.batch, self.part, self.masks = batch, part, masks
        self.ordered: tuple[int, Tensor] | None = None  # of the epoch that was last asked for

    def __getitem__(self, iteration: int) -> list[Example]:
        places = [iteration * self.batch + place for place in self.part]
        return [self._one(*divmod(place, len(self.pictures))) for place in places]

    def _one(self, epoch: int, place: int) -> Example:
        if self.ordered is None or self.ordered[0] != epoch:
            ids = torch.arange(len(self.pictures))
            self.ordered = epoch, epoch_order(self.seed, epoch, ids)
        index = self.ordered[1][place]
        picture, looks = self.pictures[int(index)], self.looks
        draws = Draws.of(self.seed, epoch, index[None]).fork("detection")
        drawn = int(draws.uniform("short side")[0] * len(looks.short_sides))
        size = resized(picture.height, picture.width, looks.short_sides[drawn], looks.long_side)
        flip = bool(draws.uniform("flip")[0] < looks.flip)
        image, target = example(picture, size, flip, self.masks)
        return image, target | {"key": draws.key[0]}


class _Testing(Dataset[Tensor]):
    def __init__(self, pictures: Sequence[Picture], short_side: int, long_side: int) -> None:
        self.pictures, self.short_side, self.long_side = pictures, short_side, long_side

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.pictures[index]
        size = resized(picture.height, picture.width, self.short_side, self.long_side)
        return resample(read(picture), size)


def _some(picture: Picture, keep: np.ndarray) -> Picture:
    masks = picture.masks
    if masks is not None:
        masks = tuple(mask for mask, kept in zip(masks, keep, strict=True) if kept)
    arrays = {
        name: getattr(picture, name)[keep] for name in ("boxes", "labels", "ignored", "areas")
    }
    return replace(picture, **arrays, masks=masks)
