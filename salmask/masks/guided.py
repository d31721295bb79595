"""Masks that saliency guides: which patches of which view are masked (Chin et al. 2024, Sec. 3.2).

Shared by `high_pass`, `blur` and `mean`. The query loses patches of the foreground and of the
background in proportion. A hard negative is made from the unmasked key view and loses mostly
foreground.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from salmask.masks import where
from salmask.params.ranges import Finite, HardNegatives, ShareRange
from salmask.params.values import STRICT
from salmask.randomness import Draws
from salmask.saliency.scda import foreground as scda_foreground
from salmask.shapes import Masked, Pair

Where = Literal["balanced", "salient", "random"]
Branch = Literal["query", "key", "both"]
# (views (B,C,H,W), patches (B,L,U,V) bool, purpose of the random numbers) -> masked views
Paint = Callable[[Tensor, Tensor, str], Tensor]


@dataclass(frozen=True, config=STRICT)
class HardNegative:
    """Options of hard negatives.

    Args:
        ratio: range of the share of foreground patches that are masked, drawn for each image
            (beta in the paper).
        count: number of hard negatives of each key; `hard_negative: null` makes none.
    """

    ratio: ShareRange = (0.4, 0.7)
    count: HardNegatives = 1


HARD_NEGATIVE = HardNegative()


@dataclass(frozen=True, config=STRICT)
class Placement:
    """Which patches of which views are masked.

    Args:
        ratio: range of the share of patches that are masked in a positive, drawn for each image
            (alpha in the paper).
        where: `balanced` masks foreground and background in proportion, `salient` masks foreground
            only, `random` masks any patch and reads no saliency.
        masked: the views that are masked as positives.
        threshold: of the foreground, in standard deviations (Chin et al. 2024, Eq. 1).
        hard_negative: options of hard negatives, or None for no hard negatives.
    """

    ratio: ShareRange
    where: Where
    masked: Branch
    threshold: Finite
    hard_negative: HardNegative | None


def mask_pair(
    pair: Pair, draws: Draws, grid: int, placement: Placement, paint: Paint, layers: int = 1
) -> Masked:
    """The pair with its views masked, and its hard negatives.

    Args:
        pair: unmasked views with activation maps.
        draws: random numbers of the batch.
        grid: patches per side.
        placement: which patches are masked.
        paint: fills the patches.
        layers: number of patch masks (L) drawn for each view, from one foreground and one ratio.
    """
    views = {"query": pair.query, "key": pair.key}
    maps = {"query": pair.query_activation, "key": pair.key_activation}
    masked = dict(views)
    for branch in views if placement.masked == "both" else (placement.masked,):
        patches = _positive_patches(maps[branch], draws, branch, grid, placement, layers)
        masked[branch] = paint(views[branch], patches, branch)
    negatives = []
    if placement.hard_negative is not None:
        for number in range(placement.hard_negative.count):
            purpose = f"negative{number or ''}"
            patches = _negative_patches(maps["key"], draws, purpose, placement, layers)
            negatives.append(paint(pair.key, patches, purpose))
    return Masked(masked["query"], masked["key"], tuple(negatives))


def reads_saliency(options: Mapping[str, Any]) -> bool:
    """Whether a guided mask needs activation maps: not with `where: random`."""
    return bool(options["where"] != "random")


def count_hard_negatives(options: Mapping[str, Any]) -> int:
    """The number of hard negatives of each image."""
    return options["hard_negative"].count if options["hard_negative"] else 0


def masks_query_only(options: Mapping[str, Any]) -> bool:
    """Whether a guided mask leaves the key unmasked and makes no hard negatives."""
    return options["masked"] == "query" and options["hard_negative"] is None


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for hard negatives without saliency."""
    if options["where"] == "random" and options["hard_negative"] is not None:
        raise ValueError(
            "hard_negative: it masks the foreground, but `where: random` reads no saliency; add "
            "`hard_negative: null`"
        )


def _positive_patches(
    activation: Tensor | None,
    draws: Draws,
    branch: str,
    grid: int,
    placement: Placement,
    layers: int,
) -> Tensor:
    """The masked patches of a positive: (B,L,U,V) bool."""
    low, high = placement.ratio
    ratio = low + (high - low) * draws.uniform(f"{branch}.ratio", 1)[:, 0]
    noise = draws.uniform(f"{branch}.patches", layers, grid, grid)
    if placement.where == "random":
        return _stack_layers(noise, partial(where.random_patches, ratio))
    foreground = _foreground(activation, placement.threshold)
    if placement.where == "salient":
        count = torch.round(ratio * grid * grid).long()
        return _stack_layers(noise, partial(where.salient_patches, foreground, count))
    return _stack_layers(noise, partial(where.balanced_patches, foreground, ratio))


def _negative_patches(
    activation: Tensor | None, draws: Draws, purpose: str, placement: Placement, layers: int
) -> Tensor:
    """The masked patches of a hard negative, round(beta * F) of the F foreground patches:
    (B,L,U,V) bool."""
    assert placement.hard_negative is not None
    foreground = _foreground(activation, placement.threshold)
    low, high = placement.hard_negative.ratio
    beta = low + (high - low) * draws.uniform(f"{purpose}.ratio", 1)[:, 0]
    count = torch.round(beta * foreground.sum(dim=(1, 2))).long()
    noise = draws.uniform(f"{purpose}.patches", layers, *foreground.shape[1:])
    return _stack_layers(noise, partial(where.salient_patches, foreground, count))


def _stack_layers(noise: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """`choose` applied to each layer of the noise (B,L,U,V)."""
    return torch.stack([choose(layer) for layer in noise.unbind(1)], dim=1)


def _foreground(activation: Tensor | None, threshold: float) -> Tensor:
    if activation is None:
        raise ValueError("this mask reads saliency, but the pair has no activation map")
    return scda_foreground(activation, threshold)
