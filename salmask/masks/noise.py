"""Noise in masked areas of high-pass filtered views: shared by `high_pass` and `mscn`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from salmask.filters import scaled, scaled_kernel
from salmask.masks import where
from salmask.masks.fill import fill_patches, fill_where
from salmask.pieces import change_chosen
from salmask.randomness import Draws


def add_noise(
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
    """Views with Gaussian noise under one of three kinds of mask, drawn for each image.

    A focal mask covers the inside or the outside of a random window. Otherwise a mask per channel
    is `patches`, and a spatial mask is the first of them for all channels. Jing et al. 2022,
    Sec. 5.2; Chin et al. 2024, Sec. 3.2.

    Args:
        images: (B,3,H,W).
        patches: (B,3,U,V) bool.
        purpose: prefix of the purposes of the random numbers.
        draws: random numbers of the batch.
        focal: probability of a focal mask.
        channel: probability of a mask per channel, if the mask is not focal.
        window: side of the focal window in px at 224 px.
        inside: whether a focal mask covers the inside of the window.
        noise: standard deviation of the noise.
    """
    side = images.shape[-1]
    kind = draws.uniform(f"{purpose}.kind", 2)
    per_channel = kind[:, 1, None, None, None] < channel
    patches = torch.where(per_channel, patches, patches[:, :1])
    filling = draws.normal(f"{purpose}.noise", *images.shape[1:], std=noise)
    spatial = fill_patches(images, filling, patches)

    def fill_window(images: Tensor, filling: Tensor, position: Tensor) -> Tensor:
        shown = where.window(position, round(scaled(window, side)), side)
        return fill_where(images, filling, shown) if inside else fill_where(filling, images, shown)

    position = draws.uniform(f"{purpose}.window", 2)
    is_focal = kind[:, 0] < focal
    return change_chosen(spatial, is_focal, fill_window, images, filling, position, overwrite=True)


def high_pass_filter(options: Mapping[str, Any], side: int) -> dict[str, Any] | None:
    """The high-pass filter of the options `kernel` and `sigma` at `side` px, for an encoder's
    description. None with the option `filtered: false`."""
    if not options.get("filtered", True):
        return None
    return {
        "name": "high_pass",
        "kernel": scaled_kernel(options["kernel"], side),
        "sigma": scaled(options["sigma"], side),
    }
