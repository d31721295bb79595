"""The named recipes: what a run's `mask:` does to a pair of views.

A strategy is a function (pair, draws, grid, *, options) -> (query, key, negative); its keyword-only
arguments are what params.yaml may set. To add one, write it and enter it in MASKS. Pixel constants
are for views of 224 px and scale with the view.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from salmask.config import STRICT, Choice, Range, bind, pick
from salmask.filters import scaled, scaled_kernel
from salmask.masks import fill, where
from salmask.randomness import Draws
from salmask.saliency.scda import foreground as scda_foreground
from salmask.shapes import Pair

Masked = tuple[Tensor, Tensor, Tensor | None]  # query, key, hard negative or None
Strategy = Callable[[Pair, Draws, int], Masked]


@dataclass(frozen=True, config=STRICT)
class HardNegative:
    """ratio: the share of foreground patches to mask, drawn per image (beta)."""

    ratio: Range = (0.4, 0.7)


HARD_NEGATIVE = HardNegative()


def none(pair: Pair, draws: Draws, grid: int) -> Masked:
    """The framework alone."""
    return pair.query, pair.key, None


def blur(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: Range = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    threshold: float = 0.6,
    kernel: int = 31,
    sigma: float = 10.0,
) -> Masked:
    """Masked patches show the strongly blurred view. Chin et al. 2024, Sec. 3.2."""
    side = pair.query.shape[-1]
    smooth = partial(
        fill.strong_blur, kernel=scaled_kernel(kernel, side), sigma=scaled(sigma, side)
    )
    return _spatial(pair, draws, ratio, hard_negative, threshold, smooth)


def mean(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: Range = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    threshold: float = 0.6,
) -> Masked:
    """Masked patches show the view's mean colour. Chin et al. 2024, Sec. 3.2."""
    return _spatial(pair, draws, ratio, hard_negative, threshold, fill.mean_fill)


def high_pass(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: Range = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    threshold: float = 0.6,
    kernel: int = 11,
    sigma: float = 5.0,
    focal: float = 0.2,
    channel: float = 0.7,
    focal_keep: float = 200.0,
    focal_drop: float = 130.0,
    noise: float = 0.18,
    hard_negative_noise: float = 0.14,
) -> Masked:
    """All views are high-pass filtered; masked areas of query and hard negative are noise.

    Per image, one of three kinds: focal with probability `focal` (no saliency: the query keeps a
    window of `focal_keep` px, the negative loses one of `focal_drop` px); else a mask per colour
    channel with probability `channel`; else one mask for all. Chin et al. 2024, Sec. 3.2.
    """
    side = pair.query.shape[-1]
    sharpen = partial(fill.high_pass, kernel=scaled_kernel(kernel, side), sigma=scaled(sigma, side))
    query, key = sharpen(pair.query), sharpen(pair.key)

    def hidden(view: str, patches: Tensor, keep_window: bool, window_px: float) -> Tensor:
        """(B,3,H,W) bool from three patch masks (B,3,U,V), by each image's kind."""
        chance = draws.uniform(f"{view}.kind", 2)[..., None, None, None]
        shared = patches[:, :1].expand_as(patches)
        spatial = where.to_pixels(torch.where(chance[:, 1] < channel, patches, shared), side)
        inside = where.window(
            draws.uniform(f"{view}.window", 2), round(scaled(window_px, side)), side
        )
        return torch.where(chance[:, 0] < focal, ~inside if keep_window else inside, spatial)

    foreground = _foreground(pair.query_activation, threshold)
    alpha = _between(draws, "query.ratio", ratio)
    patches = _per_channel(
        draws, "query.patches", foreground, partial(where.balanced_patches, foreground, alpha)
    )
    grain = fill.gaussian_noise(draws.normal("query.noise", *query.shape[1:]), noise)
    masked = fill.mix(query, grain, hidden("query", patches, True, focal_keep))
    if hard_negative is None:
        return masked, key, None

    foreground = _foreground(pair.key_activation, threshold)
    count = _salient_count(draws, foreground, hard_negative)
    patches = _per_channel(
        draws, "negative.patches", foreground, partial(where.salient_patches, foreground, count)
    )
    grain = fill.gaussian_noise(draws.normal("negative.noise", *key.shape[1:]), hard_negative_noise)
    return masked, key, fill.mix(key, grain, hidden("negative", patches, False, focal_drop))


MASKS: dict[str, Callable[..., Masked]] = {
    "none": none,
    "high_pass": high_pass,
    "blur": blur,
    "mean": mean,
}
WITHOUT_SALIENCY = ("none",)  # the masks that read no activation map
FILTERED = {"high_pass": fill.high_pass}  # the masks whose encoder needs filtered input for ever


def build(choice: Choice, where_from: str = "mask") -> Strategy:
    """The strategy that params chose, its options checked. Raises UserError."""
    function = pick(MASKS, choice, where_from)
    return partial(function, **bind(function, choice, where_from))


def input_filter(choice: Choice, side: int) -> dict[str, Any] | None:
    """The filter that an encoder trained with this mask expects on every input of `side` px: its
    name and its resolved kernel and sigma in px, or None."""
    if choice.name not in FILTERED:
        return None
    options = bind(MASKS[choice.name], choice, "mask")
    return {
        "name": choice.name,
        "kernel": scaled_kernel(options["kernel"], side),
        "sigma": scaled(options["sigma"], side),
    }


def _spatial(
    pair: Pair,
    draws: Draws,
    ratio: Range,
    hard_negative: HardNegative | None,
    threshold: float,
    filling: Callable[[Tensor], Tensor],
) -> Masked:
    """Saliency-guided patches shown through `filling`, on the query and on the hard negative."""
    side = pair.query.shape[-1]
    foreground = _foreground(pair.query_activation, threshold)
    noise = draws.uniform("query.patches", *foreground.shape[1:])
    patches = where.balanced_patches(foreground, _between(draws, "query.ratio", ratio), noise)
    query = fill.mix(pair.query, filling(pair.query), where.to_pixels(patches, side)[:, None])
    if hard_negative is None:
        return query, pair.key, None
    foreground = _foreground(pair.key_activation, threshold)
    noise = draws.uniform("negative.patches", *foreground.shape[1:])
    count = _salient_count(draws, foreground, hard_negative)
    patches = where.salient_patches(foreground, count, noise)
    negative = fill.mix(pair.key, filling(pair.key), where.to_pixels(patches, side)[:, None])
    return query, pair.key, negative


def _foreground(activation: Tensor | None, threshold: float) -> Tensor:
    if activation is None:
        raise ValueError("this mask looks at saliency, but the pair carries no activation map")
    return scda_foreground(activation, threshold)


def _between(draws: Draws, purpose: str, bounds: Range) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * draws.uniform(purpose, 1)[:, 0]


def _salient_count(draws: Draws, foreground: Tensor, hard_negative: HardNegative) -> Tensor:
    """round(beta * F) of the F foreground patches, beta drawn per image: (B,) int64."""
    beta = _between(draws, "negative.ratio", hard_negative.ratio)
    return torch.round(beta * foreground.sum(dim=(1, 2))).long()


def _per_channel(
    draws: Draws, purpose: str, foreground: Tensor, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Three independent draws of patches from the same foreground: (B,3,U,V) bool."""
    noise = draws.uniform(purpose, 3, *foreground.shape[1:])
    return torch.stack([choose(noise[:, c]) for c in range(3)], dim=1)
