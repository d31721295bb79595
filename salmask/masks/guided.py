"""Masks that saliency guides: three fills, and where they go (Chin et al. 2024, Sec. 3.2).

The query loses patches of foreground and background in proportion; the hard negative, always cut
from the unmasked key view, loses mostly foreground. Pixel constants are for views of 224 px and
scale with the view.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from salmask.errors import UserError
from salmask.filters import scaled, scaled_kernel
from salmask.masks import fill, where
from salmask.params.values import STRICT, Share, ShareRange
from salmask.randomness import Draws
from salmask.saliency.scda import foreground as scda_foreground
from salmask.shapes import Masked, Pair

Where = Literal["balanced", "salient", "random"]
Branch = Literal["query", "key", "both"]
Paint = Callable[[Tensor, Tensor, str], Tensor]  # view, patches (B,L,U,V) bool, purpose -> view


@dataclass(frozen=True, config=STRICT)
class HardNegative:
    """ratio: the share of foreground patches to mask, drawn per image (beta). count: how many are
    cut from each key."""

    ratio: ShareRange = (0.4, 0.7)
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(
                f"a count of {self.count} hard negatives means none: say hard_negative: null"
            )


HARD_NEGATIVE = HardNegative()


def blur(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareRange = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    where: Where = "balanced",
    masked: Branch = "query",
    threshold: float = 0.6,
    kernel: int = 31,
    sigma: float = 10.0,
) -> Masked:
    """Masked patches show the strongly blurred view."""
    side = pair.query.shape[-1]

    def paint(images: Tensor, patches: Tensor, purpose: str) -> Tensor:
        smooth = fill.strong_blur(images, scaled_kernel(kernel, side), scaled(sigma, side))
        return _cover(images, smooth, patches)

    rule = Rule(ratio, where, masked, threshold, hard_negative)
    return masks(pair, draws, grid, rule, paint)


def mean(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareRange = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    where: Where = "balanced",
    masked: Branch = "query",
    threshold: float = 0.6,
) -> Masked:
    """Masked patches show the view's mean colour."""

    def paint(images: Tensor, patches: Tensor, purpose: str) -> Tensor:
        return _cover(images, fill.mean_fill(images), patches)

    return masks(pair, draws, grid, Rule(ratio, where, masked, threshold, hard_negative), paint)


def high_pass(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareRange = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    where: Where = "balanced",
    masked: Branch = "query",
    threshold: float = 0.6,
    kernel: int = 11,
    sigma: float = 5.0,
    focal: Share = 0.2,
    channel: Share = 0.7,
    focal_keep: float = 200.0,
    focal_drop: float = 130.0,
    noise: float = 0.18,
    hard_negative_noise: float = 0.14,
) -> Masked:
    """All views are high-pass filtered; masked areas are noise.

    Per image, one of three kinds: focal with probability `focal` (no saliency: a positive keeps a
    window of `focal_keep` px, a hard negative loses one of `focal_drop` px); else a mask per colour
    channel with probability `channel`; else one mask for all.
    """
    side = pair.query.shape[-1]
    sharpen = partial(fill.high_pass, kernel=scaled_kernel(kernel, side), sigma=scaled(sigma, side))
    keep = partial(noisy, draws=draws, focal=focal, channel=channel)

    def paint(images: Tensor, patches: Tensor, purpose: str) -> Tensor:
        if purpose.startswith("negative"):
            return keep(
                images, patches, purpose, window=focal_drop, inside=True, noise=hard_negative_noise
            )
        return keep(images, patches, purpose, window=focal_keep, inside=False, noise=noise)

    filtered = Pair(
        sharpen(pair.query), sharpen(pair.key), pair.query_activation, pair.key_activation
    )
    rule = Rule(ratio, where, masked, threshold, hard_negative)
    return masks(filtered, draws, grid, rule, paint, layers=3)


@dataclass(frozen=True, config=STRICT)
class Rule:
    """What decides which patches of which view are masked. where: in proportion over foreground and
    background, in the foreground alone, or anywhere. masked: the branches with a positive mask."""

    ratio: ShareRange
    where: Where
    masked: Branch
    threshold: float
    hard_negative: HardNegative | None


def masks(pair: Pair, draws: Draws, grid: int, rule: Rule, paint: Paint, layers: int = 1) -> Masked:
    """The pair with its branches masked by the rule, and its hard negatives.

    layers: how many patch masks are drawn for each view, from one foreground and one ratio.
    """
    views = {"query": pair.query, "key": pair.key}
    maps = {"query": pair.query_activation, "key": pair.key_activation}
    out = dict(views)
    for branch in views if rule.masked == "both" else (rule.masked,):
        patches = _positive(maps[branch], draws, branch, grid, rule, layers)
        out[branch] = paint(views[branch], patches, branch)
    negatives = []
    for number in range(rule.hard_negative.count if rule.hard_negative else 0):
        purpose = f"negative{number or ''}"
        patches = _negative(maps["key"], draws, purpose, rule, layers)
        negatives.append(paint(pair.key, patches, purpose))
    return Masked(out["query"], out["key"], tuple(negatives))


def refuse_unguided_negatives(options: dict[str, object], where_from: str) -> None:
    """Raises UserError for hard negatives without saliency: nothing would say what to take away."""
    if options.get("where") == "random" and options.get("hard_negative") is not None:
        raise UserError(
            f"{where_from}: a hard negative loses its foreground, and with `where: random` nothing "
            "says where that is; add `hard_negative: null`"
        )


def noisy(
    images: Tensor,
    patches: Tensor,
    purpose: str,
    *,
    draws: Draws,
    focal: float,
    channel: float,
    window: float,
    inside: bool,
    noise: float,
) -> Tensor:
    """Views (B,3,H,W) with noise where one of three kinds of mask lies, drawn per image: focal (a
    random window of `window` px at 224 px is noise `inside`, or everything else is), per channel
    (the three patch masks (B,3,U,V)), or spatial (the first of them for all channels).

    Jing et al. 2022, Sec. 5.2; Chin et al. 2024, Sec. 3.2.
    """
    side = images.shape[-1]
    chance = draws.uniform(f"{purpose}.kind", 2)[..., None, None, None]
    shared = patches[:, :1].expand_as(patches)
    spatial = where.to_pixels(torch.where(chance[:, 1] < channel, patches, shared), side)
    place = draws.uniform(f"{purpose}.window", 2)
    framed = where.window(place, round(scaled(window, side)), side) == inside
    grain = fill.gaussian_noise(draws.normal(f"{purpose}.noise", *images.shape[1:]), noise)
    return fill.mix(images, grain, torch.where(chance[:, 0] < focal, framed, spatial))


def _cover(images: Tensor, filling: Tensor, patches: Tensor) -> Tensor:
    return fill.mix(images, filling, where.to_pixels(patches, images.shape[-1]))


def _positive(
    activation: Tensor | None, draws: Draws, branch: str, grid: int, rule: Rule, layers: int
) -> Tensor:
    """A positive's patches: (B,layers,U,V) bool."""
    low, high = rule.ratio
    ratio = low + (high - low) * draws.uniform(f"{branch}.ratio", 1)[:, 0]
    noise = draws.uniform(f"{branch}.patches", layers, grid, grid)
    if rule.where == "random":
        return _each(noise, partial(where.random_patches, ratio))
    foreground = _foreground(activation, rule.threshold)
    if rule.where == "salient":
        count = torch.round(ratio * grid * grid).long()
        return _each(noise, partial(where.salient_patches, foreground, count))
    return _each(noise, partial(where.balanced_patches, foreground, ratio))


def _negative(
    activation: Tensor | None, draws: Draws, purpose: str, rule: Rule, layers: int
) -> Tensor:
    """A hard negative's patches, round(beta * F) of the F salient ones: (B,layers,U,V) bool."""
    assert rule.hard_negative is not None
    foreground = _foreground(activation, rule.threshold)
    low, high = rule.hard_negative.ratio
    beta = low + (high - low) * draws.uniform(f"{purpose}.ratio", 1)[:, 0]
    count = torch.round(beta * foreground.sum(dim=(1, 2))).long()
    noise = draws.uniform(f"{purpose}.patches", layers, *foreground.shape[1:])
    return _each(noise, partial(where.salient_patches, foreground, count))


def _each(noise: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """One independent choice for each layer of noise (B,layers,U,V)."""
    return torch.stack([choose(layer) for layer in noise.unbind(1)], dim=1)


def _foreground(activation: Tensor | None, threshold: float) -> Tensor:
    if activation is None:
        raise ValueError("this mask looks at saliency, but the pair carries no activation map")
    return scda_foreground(activation, threshold)
