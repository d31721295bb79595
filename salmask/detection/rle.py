"""Masks as run-length codes (pycocotools), and the forms that COCO's files store them in."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from salmask.detection.objects import Rle

_MAX_SIDE = 1 << 16  # px


def encode(masks: np.ndarray) -> tuple[Rle, ...]:
    """Masks (n,H,W) bool -> n run-length codes."""
    from pycocotools import mask as coco_masks  # imported here: slow to import

    return tuple(coco_masks.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)))


def decode(masks: Sequence[Rle]) -> np.ndarray:
    """n run-length codes of one size, at least one -> (n,H,W) uint8, 0 or 1."""
    from pycocotools import mask as coco_masks  # imported here: slow to import

    with warnings.catch_warnings():  # pycocotools 2.0 does not implement NumPy 2's `copy` keyword
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco_masks.decode(list(masks))).transpose(2, 0, 1)


def area(mask: Rle) -> int:
    """The number of pixels of a mask."""
    from pycocotools import mask as coco_masks  # imported here: slow to import

    return int(coco_masks.area(mask))


def from_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """The `segmentation` of an object in COCO's format as a run-length code.

    Polygons, counts as a list and counts as compressed text are accepted. Everything is checked
    first, because pycocotools reads invalid memory when the counts do not fit the image.

    Args:
        segmentation: the value in the JSON file.
        height: of the image, px.
        width: of the image, px.

    Raises:
        ValueError: the segmentation is invalid. KeyError, TypeError: it has another structure.
    """
    from pycocotools import mask as coco_masks  # imported here: slow to import

    if not (0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE):
        raise ValueError(f"the image has an invalid size: {width}x{height} px")
    if isinstance(segmentation, list):
        # pycocotools takes a list of four numbers for a box, and reads past the end of odd lists
        if not segmentation or any(len(xy) < 6 or len(xy) % 2 for xy in segmentation):
            raise ValueError("the segmentation has no polygon, or one with fewer than 3 points")
        xs = [float(x) for xy in segmentation for x in xy[::2]]
        ys = [float(y) for xy in segmentation for y in xy[1::2]]
        if not all(-width < x < 2 * width for x in xs) or not all(
            -height < y < 2 * height for y in ys
        ):
            raise ValueError("the segmentation has points far outside the image")
        return dict(coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width)))
    size, counts = segmentation["size"], segmentation["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"the mask has size {size}, but the image has size {[height, width]}")
    runs = counts if isinstance(counts, list) else _decompress_counts(counts)
    if any(not isinstance(run, int) or run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError("the counts of the mask do not add up to the size of the image")
    return dict(coco_masks.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def _decompress_counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed text.

    Each character holds 5 bits, lowest bits first, and a flag for more. From the third run on, a
    value is the difference to the run before the previous one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("the counts of the mask are not COCO's compressed text")
        if not bits & 32:
            value -= (bits & 16 and 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the counts of the mask end in the middle of a number")
    return runs
