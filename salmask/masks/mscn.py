"""Masked Siamese ConvNets (Jing et al. 2022): random masks on high-pass filtered views."""

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from salmask.filters import scaled, scaled_kernel
from salmask.masks import fill, where
from salmask.masks.guided import noisy
from salmask.params.values import Share
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def mscn(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: Share = 0.15,
    key_ratio: Share | None = 0.05,
    extra_views: NonNegativeInt = 2,
    share_view: bool = False,
    kernel: int = 11,
    sigma: float = 5.0,
    filtered: bool = True,
    focal: Share = 0.4,
    channel: Share = 0.7,
    focal_keep: float = 200.0,
    noise: float = 0.18,
) -> Masked:
    """Every view is high-pass filtered and loses random patches, or all but a window, to noise.

    key_ratio: of the key, or null to leave the key unmasked. extra_views: further views of the
    image, masked as the query is. share_view: all views are maskings of the query's own crop and
    colours; filtered: false leaves the filter out (ablations). Chin et al. 2024 compare with
    `key_ratio: null, extra_views: 0`.
    """
    side = pair.query.shape[-1]

    def sharpen(images: Tensor) -> Tensor:
        if not filtered:
            return images
        return fill.high_pass(images, scaled_kernel(kernel, side), scaled(sigma, side))

    def mask(images: Tensor, purpose: str, share: float) -> Tensor:
        shares = torch.full((len(images),), share, device=images.device)
        scores = draws.uniform(f"{purpose}.patches", 3, grid, grid).unbind(1)
        patches = torch.stack([where.random_patches(shares, u) for u in scores], dim=1)
        return noisy(
            images,
            patches,
            purpose,
            draws=draws,
            focal=focal,
            channel=channel,
            window=focal_keep,
            inside=False,
            noise=noise,
        )

    query = sharpen(pair.query)
    key = query if share_view else sharpen(pair.key)
    extra = [query] * extra_views if share_view else [sharpen(view) for view in pair.extra]
    return Masked(
        mask(query, "query", ratio),
        key if key_ratio is None else mask(key, "key", key_ratio),
        extra=tuple(mask(view, f"extra{n}", ratio) for n, view in enumerate(extra)),
    )
