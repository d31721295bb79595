"""Which images a protocol learns from: shares of the labels, and what is held out of a split."""

import torch
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.randomness import Draws


def labelled_ids(manifest: Manifest, split: str) -> Tensor:
    """The rows (n,) int64 of a split that carry a label, in order."""
    ids = manifest.ids(split)
    return ids[manifest.labels[ids] >= 0]


def balanced(ids: Tensor, labels: Tensor, each: int, order: Tensor) -> Tensor:
    """At most `each` rows of every class, those that come first by `order`: (m,) of ids, sorted.

    ids, labels: (n,) int64. order: (n,) any numbers; ties go by position.
    """
    by_order = torch.argsort(order, stable=True)
    by_class = by_order[torch.argsort(labels[by_order], stable=True)]
    _, counts = labels.unique(return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place = torch.arange(len(ids)) - starts  # within its class
    return ids[by_class[place < each]].sort().values


def hold_out(manifest: Manifest, ids: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits labelled rows (n,) into (held out, the rest), both sorted: a share of each class.

    A class of one image is not held out; of any other, at least one image is, and one stays.
    """
    order = Draws.of(seed, 0, ids).uniform("held out", 1)[:, 0]
    labels = manifest.labels[ids]
    found = []
    for label in labels.unique():
        rows = ids[labels == label]
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        found.append(rows[order[labels == label].argsort(stable=True)[:count]])
    held = torch.cat(found).sort().values
    return held, ids[~torch.isin(ids, held)]
