"""Which anchors and regions of an image its losses are taken on."""

import torch
from torch import Tensor

from salmask.randomness import Draws


def subsample(labels: Tensor, key: Tensor, purpose: str, most: int, positive: float) -> Tensor:
    """Labels (n,) with -1 for all but `most`, of which up to the share `positive` are above 0 and
    the others 0; drawn by the image's `key` () int64, whatever stands beside it in a batch."""
    noise = Draws(key[None]).uniform(purpose, len(labels))[0]
    front = _lowest(noise, labels >= 1, int(most * positive))
    back = _lowest(noise, labels == 0, most - len(front))
    kept = torch.full_like(labels, -1)
    for chosen in (front, back):
        kept[chosen] = labels[chosen]
    return kept


def everything(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """In the place of torchvision's sampler, of labels that are subsample: all above 0, all 0."""
    return [some >= 1 for some in labels], [some == 0 for some in labels]


def _lowest(noise: Tensor, among: Tensor, most: int) -> Tensor:
    """The places, `most` at most, where `noise` is lowest among those that are True."""
    places = torch.where(among)[0]
    return places[noise[places].argsort(stable=True)[:most]]
