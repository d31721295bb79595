"""Annotated images, and the objects that a detector finds in them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Rle = dict[str, Any]  # pycocotools' run-length mask: {"size": [height, width], "counts": bytes}
Rule = Literal["voc", "coco"]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its n annotated objects.

    Args:
        file: the image file.
        height: px.
        width: px.
        boxes: (n,4) float64, left, top, right, bottom in px; an image of width W spans 0 to W.
        labels: (n,) int64 in [0, classes).
        ignored: (n,) bool, objects that are not scored: difficult ones (VOC) and crowds (COCO).
        areas: (n,) float64, px^2; COCO's small, medium and large objects are ranges of it.
        masks: one per object, or None when the annotations have no masks.
    """

    file: Path
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Annotations:
    """The annotated images of one split.

    Args:
        classes: names of the classes, in the order of the labels.
        images: the images of the split.
        rule: the rule that scores detections in these images.
        skipped: one line for each image or object that was left out or changed, with the reason.
        notes: sentences about how the annotations were read.
    """

    classes: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    rule: Rule
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def has_masks(self) -> bool:
        """Whether all images have masks."""
        return all(image.masks is not None for image in self.images)


@dataclass(frozen=True)
class DetectionData:
    """Annotated images to train on and to test on.

    Args:
        name: name of the data set in metrics and paths.
        train: the training images.
        test: the test images.
    """

    name: str
    train: Annotations
    test: Annotations


@dataclass(frozen=True)
class Detections:
    """The n objects that a detector found in one image.

    Args:
        boxes: (n,4) float64, as in `AnnotatedImage`.
        scores: (n,) float64 in [0,1].
        labels: (n,) int64 in [0, classes).
        masks: one per object, or None for a detector without mask head.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class DetectionScores:
    """Average precisions of a detector.

    Args:
        overall: percent by name (`ap`, `ap50`, ...), the means over classes; a score that is
            undefined because there are no objects is missing.
        classes: the same for each class, by its name, with the number `objects` of scored objects.
    """

    overall: dict[str, float]
    classes: dict[str, dict[str, float]]
