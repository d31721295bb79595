"""Subsets of labelled images: shares of the labels, and held-out images."""

import torch
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.randomness import Draws


def labelled_ids(manifest: Manifest, split: str) -> Tensor:
    """The labelled rows (n,) int64 of a split, in order."""
    ids = manifest.ids(split)
    return ids[manifest.labels[ids] >= 0]


def balanced(ids: Tensor, labels: Tensor, each: int, order: Tensor) -> Tensor:
    """At most `each` rows of every class: those with the smallest `order`.

    Args:
        ids: (n,) int64 rows.
        labels: (n,) int64 of these rows.
        each: number of rows per class.
        order: (n,) numbers; the position decides between equal ones.

    Returns:
        (m,) int64 of `ids`, sorted.
    """
    by_class, place, _ = _classes_in_order(labels, order)
    return ids[by_class[place < each]].sort().values


def hold_out(manifest: Manifest, ids: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits labelled rows (n,) into a share of each class to hold out, and the rest, both sorted.

    At least one image of each class is held out and at least one is kept; the image of a class of
    one is kept.
    """
    labels = manifest.labels[ids]
    order = Draws.of(seed, 0, ids).uniform("held out", 1)[:, 0]
    by_class, place, counts = _classes_in_order(labels, order)
    held_counts = (share * counts.double()).round().clamp(min=1).long().minimum(counts - 1)
    is_held = torch.zeros(len(ids), dtype=torch.bool)
    is_held[by_class[place < held_counts.repeat_interleave(counts)]] = True
    return ids[is_held].sort().values, ids[~is_held]


def _classes_in_order(labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions sorted by class, then by `order`; their places within the class; class sizes.

    Args:
        labels: (n,) int64.
        order: (n,) numbers; the position decides between equal ones.

    Returns:
        (n,) int64, (n,) int64 and (classes,) int64.
    """
    by_order = torch.argsort(order, stable=True)
    by_class = by_order[torch.argsort(labels[by_order], stable=True)]
    counts = labels.unique(return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class, torch.arange(len(labels)) - starts, counts
