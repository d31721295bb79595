"""Drawings with several objects of known place and outline: the demo of detection."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salmask.datasets.demo_images import CLASSES, SPLITS, render

_VISIBLE = 0.5  # the share of an object that others must leave in view for it to count
_SIZES = (0.35, 0.6)  # of an object that is laid over a drawing, as shares of its side


@dataclass(frozen=True)
class Scene:
    """image: (side,side,3) uint8. masks: (n,side,side) bool, what is in view of each object.
    labels: (n,) indices into CLASSES."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


def scene(seed: int, split: str, index: int, side: int = 96, most: int = 3) -> Scene:
    """Image `index` of a split of the demo, with up to `most` - 1 smaller objects laid over it."""
    entropy = np.random.SeedSequence([seed, list(SPLITS).index(split), index, most])
    rng = np.random.Generator(np.random.Philox(entropy))
    ground = render(seed, split, index, side)
    image, masks, labels = ground.image.copy(), [ground.mask.copy()], [ground.label]
    whole = [ground.mask.sum()]
    for _ in range(int(rng.integers(most))):
        number, small = int(rng.integers(1 << 20)), round(side * rng.uniform(*_SIZES))
        drawn = render(seed, split, number * len(CLASSES) + int(rng.integers(len(CLASSES))), small)
        top, left = rng.integers(side - small + 1, size=2)
        place = np.s_[top : top + small, left : left + small]
        image[place][drawn.mask] = drawn.image[drawn.mask]
        for mask in masks:
            mask[place] &= ~drawn.mask
        masks.append(np.zeros((side, side), dtype=bool))
        masks[-1][place] = drawn.mask
        labels.append(drawn.label)
        whole.append(drawn.mask.sum())
    seen = [i for i, mask in enumerate(masks) if mask.sum() >= _VISIBLE * whole[i]]
    return Scene(image, np.stack([masks[i] for i in seen]), np.array([labels[i] for i in seen]))
