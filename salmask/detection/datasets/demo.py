"""Drawings with several objects, whose masks are known exactly."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from salmask.datasets.demo_images import CLASSES
from salmask.datasets.demo_scenes import scene
from salmask.detection import rle
from salmask.detection.datasets import Splits
from salmask.detection.objects import AnnotatedImage, Annotations
from salmask.errors import UserError

_DRAWN_SPLITS = {"train": "train", "test": "val"}  # our split -> the split of the drawings


def read(
    folder: Path,
    seed: int,
    *,
    root: str,
    images: dict[Literal["train", "test"], PositiveInt] = {"train": 200, "test": 60},  # noqa: B006
    side: PositiveInt = 96,
    objects: PositiveInt = 3,
    first: NonNegativeInt = 20_000,
) -> Splits:
    """Draws images into folder/images.

    Args:
        folder: receives the images.
        seed: of the drawings.
        root: not used; DVC watches it.
        images: number of images for `train` and for `test`.
        side: of an image, px.
        objects: maximum number of objects in an image.
        first: number of the first drawing of each split.
    """
    if set(images) != set(_DRAWN_SPLITS):
        raise UserError(f"images: give the numbers of images for train and for test, got {images}")
    splits = {}
    for name, count in images.items():
        target = folder / "images" / name
        target.mkdir(parents=True, exist_ok=True)
        annotated = []
        for index in range(first, first + count):
            drawing = scene(seed, _DRAWN_SPLITS[name], index, side, objects)
            file = target / f"{index:05d}.png"
            Image.fromarray(drawing.image).save(file)
            annotated.append(_annotated(file, drawing.masks, drawing.labels))
        splits[name] = Annotations(CLASSES, tuple(annotated), "coco")
    return folder, splits["train"], splits["test"]


def _annotated(file: Path, masks: np.ndarray, labels: np.ndarray) -> AnnotatedImage:
    """The annotations of a drawing. masks: (n,H,W) bool, none empty."""
    boxes = []
    for mask in masks:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    height, width = masks.shape[1:]
    return AnnotatedImage(
        file,
        height,
        width,
        np.array(boxes, dtype=np.float64),
        labels,
        np.zeros(len(masks), dtype=bool),
        masks.sum(axis=(1, 2)).astype(np.float64),
        rle.encode(masks),
    )


DATASET = read
