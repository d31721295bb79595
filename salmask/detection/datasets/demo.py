"""Drawings with several objects, whose masks are known exactly."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic.dataclasses import dataclass

from salmask.datasets.demo_images import CLASSES
from salmask.datasets.demo_scenes import scene
from salmask.detection import rle
from salmask.detection.datasets import Splits
from salmask.detection.objects import AnnotatedImage, Annotations
from salmask.params.ranges import Few, NonNegativeInt, PositiveInt, ViewSide
from salmask.params.values import STRICT

_DRAWN_SPLITS = {"train": "train", "test": "val"}  # our split -> the split of the drawings


@dataclass(frozen=True, config=STRICT)
class Images:
    """Numbers of images."""

    train: PositiveInt = 200
    test: PositiveInt = 60


_IMAGES = Images()


def read(
    folder: Path,
    seed: int,
    *,
    root: str,
    images: Images = _IMAGES,
    side: ViewSide = 96,
    objects: Few = 3,
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
    splits = {}
    for name, count in asdict(images).items():
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
