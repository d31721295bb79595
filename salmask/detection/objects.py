"""What is in an image, as people drew it and as a detector found it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Rle = dict[str, Any]  # pycocotools' compressed mask: {"size": [height, width], "counts": bytes}
Rule = Literal["voc", "coco"]


@dataclass(frozen=True)
class Picture:
    """An image and its n objects. boxes (n,4) float64: left, top, right, bottom in px, so that an
    image of width W spans 0 to W. labels (n,) int64 in [0, classes). ignored (n,) bool: difficult
    (VOC) or crowds (COCO), which count neither way. areas (n,) float64: px, by COCO's sizes small,
    medium and large. masks: one for each object, or None where the source has none."""

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
    """The images of one split. rule: by which their detections are scored. skipped: what was left
    out of them and why, a line each."""

    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    rule: Rule
    skipped: tuple[str, ...] = ()

    def has_masks(self) -> bool:
        return all(picture.masks is not None for picture in self.pictures)


@dataclass(frozen=True)
class Detections:
    """What was found in one image: boxes (n,4) float64 and masks as in `Picture`, scores (n,)
    float64, labels (n,) int64."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Scores:
    """overall: percent by name (`ap`, `ap50`, ...), without what no object speaks of. classes: the
    same for each class, by its name, with its number of `objects` that count."""

    overall: dict[str, float]
    classes: dict[str, dict[str, float]]
