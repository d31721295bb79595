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
    by_order = torch.argsort(order, stable=True)
    by_class = by_order[torch.argsort(labels[by_order], stable=True)]
    _, counts = labels.unique(return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place = torch.arange(len(ids)) - starts  # position within its class
    return ids[by_class[place < each]].sort().values


def hold_out(manifest: Manifest, ids: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits labelled rows (n,) into a share of each class to hold out, and the rest, both sorted.

    At least one image of each class is held out and at least one is kept; the image of a class of
    one is kept.
    """
    order = Draws.of(seed, 0, ids).uniform("held out", 1)[:, 0]
    labels = manifest.labels[ids]
    parts = []
    for label in labels.unique():
        rows = ids[labels == label]
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        parts.append(rows[order[labels == label].argsort(stable=True)[:count]])
    held = torch.cat(parts).sort().values
    return held, ids[~torch.isin(ids, held)]
