"""Draws the anchors and regions of an image that its losses are computed on."""

import torch
from torch import Tensor

from salmask.randomness import Draws


def subsample(
    labels: Tensor, key: Tensor, purpose: str, count: int, positive_share: float
) -> Tensor:
    """Keeps the labels of a random sample and sets all others to -1.

    The sample depends on the image's key only, and not on the other images of the batch.

    Args:
        labels: (n,), above 0 for objects, 0 for background, below 0 for neither.
        key: () int64, of the image.
        purpose: name of the sample; other purposes draw other samples.
        count: maximum size of the sample.
        positive_share: maximum share of objects in the sample.

    Returns:
        Labels (n,) of the same dtype.
    """
    noise = Draws(key[None]).uniform(purpose, len(labels))[0]
    positive = _lowest(noise, labels >= 1, int(count * positive_share))
    negative = _lowest(noise, labels == 0, count - len(positive))
    sampled = torch.full_like(labels, -1)
    for places in (positive, negative):
        sampled[places] = labels[places]
    return sampled


def _lowest(noise: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The places of the `count` lowest values of `noise` among the candidates (bool)."""
    places = torch.where(candidates)[0]
    return places[noise[places].argsort(stable=True)[:count]]
