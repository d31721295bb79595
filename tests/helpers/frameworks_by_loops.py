"""Slow references for frameworks: embeddings as lists of numbers, and losses by loops.

Only copies of the sub-networks of a framework are run.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salmask.encoders.norms import group_norms
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Mixed, Views

ENCODER = EncoderConfig("resnet10", width=8, stem="small2")
FEATURES = 8 * ENCODER.width
BATCH, SIDE = 4, 16
BACKWARDS = torch.arange(BATCH).flip(0)

Vectors = list[list[float]]  # one for each sample


def shake(*modules: nn.Module) -> None:
    """Changes all parameters, so that networks differ from their moving averages."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def images(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Views of noise, (BATCH,3,SIDE,SIDE) each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, BATCH, 3, SIDE, SIDE, generator=generator).unbind(0)


def mixtures(*pictures: Tensor, switch: bool = True) -> tuple[Mixed, ...]:
    """Mixtures of each view with the batch in reverse order, with different shares per image."""
    own, shares = torch.arange(BATCH), torch.tensor([0.25, 0.5, 0.9, 0.7])
    terms = ((own, shares), (BACKWARDS, 1 - shares))
    return tuple(Mixed(picture, terms[: 1 + switch]) for picture in pictures)


def halves(first: Tensor, second: Tensor) -> tuple[Mixed, ...]:
    """Two parts of the same images, whose positive is their own key, as the mask `erase` makes."""
    own, shares = torch.arange(BATCH), torch.tensor([0.25, 0.5, 0.9, 0.7])
    return Mixed(first, ((own, shares),)), Mixed(second, ((own, 1 - shares),))


def views(
    pictures: Sequence[Tensor],
    pairs: Sequence[tuple[int, int, float]],
    shuffle: Sequence[int] = range(BATCH),
    negative_shuffle: Sequence[int] = range(BATCH),
    **more: object,
) -> Views:
    orders = torch.tensor([list(shuffle), list(negative_shuffle)])
    return Views(tuple(pictures), tuple(pairs), orders, **more)  # type: ignore[arg-type]


def embed(pictures: Tensor, *parts: nn.Module, group: int = 0) -> Vectors:
    """The embeddings of views by copies of sub-networks, `group` samples at a time."""
    chain = group_norms(nn.Sequential(*(copy.deepcopy(part) for part in parts)), 0)
    with torch.no_grad():
        made = [chain(some).double() for some in pictures.split(group or len(pictures))]
    return [row for some in made for row in some.tolist()]


def cosine(a: list[float], b: list[float]) -> float:
    def dot(x: list[float], y: list[float]) -> float:
        return sum(p * q for p, q in zip(x, y, strict=True))

    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def cross_entropy(positive: float, others: Sequence[float]) -> float:
    """-log of the softmax of the positive among all values."""
    return math.log(sum(math.exp(v) for v in (positive, *others))) - positive


def moved(follower: nn.Module, leader: nn.Module, momentum: float) -> nn.Module:
    """A copy of the follower after one momentum update, by the formula."""
    follower = copy.deepcopy(follower)
    with torch.no_grad():
        for theirs, ours in zip(follower.parameters(), leader.parameters(), strict=True):
            theirs.copy_(momentum * theirs + (1 - momentum) * ours)
    return follower


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether all parameters are equal up to rounding."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-6, atol=1e-6) for x, y in pairs)


def learning(model: nn.Module) -> set[str]:
    """The submodules with a non-zero gradient."""
    parts = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return {name.partition(".")[0] for name in parts}


def layout(head: nn.Module) -> list[str]:
    """The layers of a head: `4>8` is a linear layer, `4>8+` a linear layer with a bias, `plain` a
    norm without scale and shift."""
    names = []
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            bias = "" if layer.bias is None else "+"
            names.append(f"{layer.in_features}>{layer.out_features}{bias}")
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            names.append("norm" if layer.affine else "plain")
        elif not isinstance(layer, nn.Sequential):
            names.append(type(layer).__name__.lower())
    return names
