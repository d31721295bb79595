"""Drawings of several objects with known boxes and masks, for the demo of detection."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salmask.datasets.demo_images import CLASSES, SPLITS, render

_MIN_VISIBLE = 0.5  # share of an object that must be visible for it to be annotated
_SIZES = (0.35, 0.6)  # range of the side of an added object, as a share of the image's side


@dataclass(frozen=True)
class Scene:
    """A drawing of n objects.

    Args:
        image: (side, side, 3) uint8.
        masks: (n, side, side) bool, the visible part of each object.
        labels: (n,) int64, indices into CLASSES.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


def scene(seed: int, split: str, index: int, side: int = 96, most: int = 3) -> Scene:
    """Image `index` of a split of the demo, with up to `most` - 1 smaller objects drawn over it."""
    entropy = np.random.SeedSequence([seed, list[str](SPLITS).index(split), index, most])
    rng = np.random.Generator(np.random.Philox(entropy))
    ground = render(seed, split, index, side)
    image, masks, labels = ground.image.copy(), [ground.mask.copy()], [ground.label]
    areas = [ground.mask.sum()]  # of the whole objects
    for _ in range(int(rng.integers(most))):
        number, small = int(rng.integers(1 << 20)), round(side * rng.uniform(*_SIZES))
        added = render(seed, split, number * len(CLASSES) + int(rng.integers(len(CLASSES))), small)
        top, left = rng.integers(side - small + 1, size=2)
        window = np.s_[top : top + small, left : left + small]
        image[window][added.mask] = added.image[added.mask]
        for mask in masks:
            mask[window] &= ~added.mask
        masks.append(np.zeros((side, side), dtype=bool))
        masks[-1][window] = added.mask
        labels.append(added.label)
        areas.append(added.mask.sum())
    kept = [i for i, mask in enumerate(masks) if mask.sum() >= _MIN_VISIBLE * areas[i]]
    return Scene(image, np.stack([masks[i] for i in kept]), np.array([labels[i] for i in kept]))
