"""Masked Siamese ConvNets (Jing et al. 2022): random noise masks on high-pass filtered views."""

import torch
from torch import Tensor

from salmask.filters import high_pass, scaled, scaled_kernel
from salmask.masks import Mask, where
from salmask.masks.noise import add_noise, high_pass_filter
from salmask.params.ranges import FewOrNone, Kernel, NonNegative, Positive, Share
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def mscn(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: Share = 0.15,
    key_ratio: Share | None = 0.05,
    extra_views: FewOrNone = 2,
    share_view: bool = False,
    kernel: Kernel = 11,
    sigma: Positive = 5.0,
    filtered: bool = True,
    focal: Share = 0.4,
    channel: Share = 0.7,
    focal_keep: Positive = 200.0,
    noise: NonNegative = 0.18,
) -> Masked:
    """All views are high-pass filtered, and random patches, or everything outside a window, are
    noise.

    Chin et al. 2024 compare with `key_ratio: null, extra_views: 0`.

    Args:
        ratio: share of patches that are masked in the query and in further views.
        key_ratio: share of patches that are masked in the key, or None for an unmasked key.
        extra_views: number of further views of each image, masked as the query.
        share_view: whether all views are maskings of the query's crop and colours.
        kernel: size of the high-pass filter's Gaussian kernel in px.
        sigma: standard deviation of this Gaussian in px.
        filtered: whether views are filtered. False is an ablation.
        focal: probability of a focal mask.
        channel: probability of a mask for each channel, if the mask is not focal.
        focal_keep: side in px of the window that a focal mask keeps.
        noise: standard deviation of the noise.
    """
    side = pair.query.shape[-1]

    def sharpen(images: Tensor) -> Tensor:
        if not filtered:
            return images
        return high_pass(images, scaled_kernel(kernel, side), scaled(sigma, side))

    def mask(images: Tensor, purpose: str, share: float) -> Tensor:
        shares = torch.full((len(images),), share, device=images.device)
        layers = draws.uniform(f"{purpose}.patches", 3, grid, grid).unbind(1)
        patches = torch.stack([where.random_patches(shares, layer) for layer in layers], dim=1)
        return add_noise(
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


MASK = Mask(
    mscn,
    label="MSCN",
    frameworks=("moco", "simclr", "byol"),
    extra_views=lambda options: 0 if options["share_view"] else options["extra_views"],
    extra_passes=lambda options: options["extra_views"],
    query_only=lambda options: options["key_ratio"] is None and not options["extra_views"],
    input_filter=high_pass_filter,
)
