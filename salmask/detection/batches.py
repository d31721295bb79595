"""Images with their objects as a detector gets them: resized, flipped, in the order of a seed."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from salmask.data.decode import decode
from salmask.data.file_bytes import ImageError, missing_folder
from salmask.data.prefetch import on_device
from salmask.data.resample import resample
from salmask.data.worker_processes import load_batches
from salmask.detection import rle
from salmask.detection.objects import AnnotatedImage, Annotations
from salmask.distributed import local_rows
from salmask.errors import DataGoneError
from salmask.randomness import Draws, epoch_order

log = logging.getLogger(__name__)
T = TypeVar("T")
Example = tuple[Tensor, dict[str, Tensor]]  # image (3,H,W) uint8, target as in `Detector`
_GRAY = (124, 116, 104)


@dataclass(frozen=True)
class Resizing:
    """How training images are resized and flipped.

    Args:
        short_sides: px; one of them is drawn for each image.
        long_side: maximum of the long side, px.
        flip: share of images that are flipped horizontally.
    """

    short_sides: tuple[int, ...]
    long_side: int = 1333
    flip: float = 0.5


def trainable(annotations: Annotations, difficult: bool = True) -> list[AnnotatedImage]:
    """The images with objects to learn from, and these objects only.

    Args:
        annotations: of the training images. Crowds are always left out.
        difficult: whether to learn from VOC's difficult objects. The published protocols do,
            although these objects are not scored.
    """
    images = []
    for image in annotations.images:
        keep = np.ones(len(image), dtype=bool)
        if annotations.rule == "coco" or not difficult:
            keep = ~image.ignored
        if keep.any():
            images.append(_with_objects(image, keep))
    return images


def training_batches(
    images: Sequence[AnnotatedImage],
    resizing: Resizing,
    *,
    seed: int,
    batch: int,
    start: int,
    end: int,
    masks: bool,
    workers: int,
    device: torch.device,
) -> Iterator[list[Example]]:
    """This process's part of the batches of some iterations, on a device.

    Each epoch visits all images once, in its own order. How an image is resized and flipped, and
    its `key` for further random numbers, depend on (seed, epoch, image) only.

    Args:
        images: from `trainable`.
        resizing: sizes and flips.
        seed: of the order, the sizes and the flips.
        batch: images of all processes.
        start: the first iteration.
        end: the iteration after the last one.
        masks: whether targets have masks.
        workers: processes that decode.
        device: of the batches.
    """
    rows = local_rows(torch.arange(batch)).tolist()
    dataset = _TrainingBatches(images, resizing, seed, batch, rows, masks)
    size = len(rows) * _mean_bytes(images, max(resizing.short_sides), resizing.long_side, masks)
    return _loaded(dataset, range(start, end), size, workers, device)


def inference_images(
    images: Sequence[AnnotatedImage],
    short_side: int,
    long_side: int,
    *,
    workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Each image (3,H,W) uint8 at its size for testing, in order, on a device. Sides in px, as in
    `resized`."""
    dataset = _TestImages(images, short_side, long_side)
    size = _mean_bytes(images, short_side, long_side, masks=False)
    return _loaded(dataset, range(len(images)), size, workers, device)


def resized(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width in px with the given short side, unless the long side would exceed its
    maximum; then with the maximum long side."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def example(image: AnnotatedImage, size: tuple[int, int], flip: bool, masks: bool) -> Example:
    """The pixels and the objects of an image.

    Args:
        image: annotated with at least one object when masks are wanted.
        size: height and width of the result, px.
        flip: whether to flip horizontally.
        masks: whether the target has masks.
    """
    pixels = resample(read_image(image), size)
    scale = np.array([size[1] / image.width, size[0] / image.height] * 2)
    boxes = torch.from_numpy(image.boxes * scale).float()
    target = {"boxes": boxes, "labels": torch.from_numpy(image.labels) + 1}
    if masks:
        assert image.masks is not None
        stored = torch.from_numpy(rle.decode(image.masks))
        target["masks"] = torch.nn.functional.interpolate(stored[None], size, mode="nearest")[0]
    if flip:
        pixels = pixels.flip(2)
        left, top, right, bottom = boxes.unbind(1)
        target["boxes"] = torch.stack([size[1] - right, top, size[1] - left, bottom], dim=1)
        if masks:
            target["masks"] = target["masks"].flip(2)
    not_empty = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(dim=1)  # after rounding
    return pixels, {name: value[not_empty] for name, value in target.items()}


def read_image(image: AnnotatedImage) -> Image.Image:
    """The image's pixels; a gray image, with one warning, if the file is broken or has changed.

    Raises:
        DataGoneError: the folder of the image does not exist any more.
    """
    try:
        pixels = decode(image.file)
        if pixels.size == (image.width, image.height):
            return pixels
        problem = f"it has {pixels.size[0]}x{pixels.size[1]} px, not {image.width}x{image.height}"
    except ImageError as error:
        if message := missing_folder(image.file.parent):
            raise DataGoneError(message) from None
        problem = str(error)
    _warn_once(image.file, problem)
    return Image.new("RGB", (image.width, image.height), _GRAY)


@cache
def _warn_once(file: Path, problem: str) -> None:
    log.warning("%s: %s; a gray image replaces it", file, problem)


def _loaded(
    dataset: Dataset[T], items: Sequence[int], item_bytes: int, workers: int, device: torch.device
) -> Iterator[T]:
    """Some items of a data set, which worker processes make, on a device."""
    batches = load_batches(
        dataset,
        batch_size=None,
        sampler=items,
        workers=workers,
        batch_bytes=item_bytes,
        pin_memory=device.type == "cuda",
    )
    return on_device(batches, device)


def _mean_bytes(
    images: Sequence[AnnotatedImage], short_side: int, long_side: int, masks: bool
) -> int:
    """The mean size of resized images in bytes, at least 1; with the masks of their objects."""
    total = 0
    for image in images:
        height, width = resized(image.height, image.width, short_side, long_side)
        total += height * width * (3 + (len(image) if masks else 0))
    return max(1, total // max(1, len(images)))


@dataclass(eq=False)
class _TrainingBatches(Dataset[list[Example]]):
    """Iteration -> this process's part of the batch."""

    images: Sequence[AnnotatedImage]
    resizing: Resizing
    seed: int
    batch: int
    rows: Sequence[int]
    masks: bool
    order: tuple[int, Tensor] | None = None  # the last epoch, and its order of images

    def __getitem__(self, iteration: int) -> list[Example]:
        places = [iteration * self.batch + row for row in self.rows]
        return [self._example(*divmod(place, len(self.images))) for place in places]

    def _example(self, epoch: int, place: int) -> Example:
        if self.order is None or self.order[0] != epoch:
            ids = torch.arange(len(self.images))
            self.order = epoch, epoch_order(self.seed, epoch, ids)
        index = self.order[1][place]
        image, resizing = self.images[int(index)], self.resizing
        draws = Draws.of(self.seed, epoch, index[None]).fork("detection")
        side = int(draws.uniform("short side")[0] * len(resizing.short_sides))
        short_side = resizing.short_sides[side]
        size = resized(image.height, image.width, short_side, resizing.long_side)
        flip = bool(draws.uniform("flip")[0] < resizing.flip)
        pixels, target = example(image, size, flip, self.masks)
        return pixels, target | {"key": draws.key[0]}


@dataclass(eq=False)
class _TestImages(Dataset[Tensor]):
    images: Sequence[AnnotatedImage]
    short_side: int
    long_side: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        size = resized(image.height, image.width, self.short_side, self.long_side)
        return resample(read_image(image), size)


def _with_objects(image: AnnotatedImage, keep: np.ndarray) -> AnnotatedImage:
    """The image with the objects where `keep` (n,) bool is True."""
    masks = image.masks
    if masks is not None:
        masks = tuple(mask for mask, kept in zip(masks, keep, strict=True) if kept)
    arrays = {name: getattr(image, name)[keep] for name in ("boxes", "labels", "ignored", "areas")}
    return replace(image, **arrays, masks=masks)
