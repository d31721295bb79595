"""Parts shared by the masks that mix images (`mixmask`, `unmix`, `mixmask_star`) and by `erase`.

The framework's loss on the unmasked views stays. A mixed query adds one term for each image that
it shows, weighted by the share of this image (Vishniakov et al. 2023; Shen et al. 2022). A keep
mask is True, or 1, where a sample keeps its own pixels.
"""

from typing import Literal

import torch
from torch import Tensor

from salmask.masks import where
from salmask.params.ranges import ShareOrRange
from salmask.randomness import Draws
from salmask.shapes import Mixed

Shape = Literal["block", "discrete"]
MaskPer = Literal["batch", "image"]


def mixture(images: Tensor, other: Tensor, kept: Tensor, switch: bool = True) -> Mixed:
    """kept * x_i + (1 - kept) * x_other(i), with one positive for each of the two images.

    Args:
        images: x, (B,C,H,W).
        other: rows of the other images, (B,) int64.
        kept: keep mask (1 or B,1,H,W) in [0,1].
        switch: whether the key of the other image is a positive too.
    """
    share = kept_share(kept, images)
    positives = [(torch.arange(len(images), device=images.device), share), (other, 1 - share)]
    mixed = images.index_select(0, other).lerp_(images, kept)
    return Mixed(mixed, tuple(positives[: 1 + switch]))


def kept_share(kept: Tensor, images: Tensor) -> Tensor:
    """lambda: the share of its own pixels that each sample keeps, (B,)."""
    return kept.mean(dim=(1, 2, 3)).expand(len(images))


def reversed_rows(images: Tensor) -> Tensor:
    """The rows of the batch in reverse order, (B,) int64."""
    return torch.arange(len(images), device=images.device).flip(0)


def keep_mask(
    draws: Draws,
    images: Tensor,
    grid: int,
    ratio: ShareOrRange,
    shape: Shape,
    mask_per: MaskPer,
) -> Tensor:
    """Where samples keep their own pixels: (1 or B,1,H,W) float32 of 0 and 1.

    Args:
        draws: random numbers of the batch.
        images: (B,C,H,W).
        grid: patches per side. If it does not divide the side of the images, patches differ by a
            pixel.
        ratio: share of patches that a sample keeps; fixed, or a range to draw from.
        shape: `block` keeps a few rectangles, `discrete` single patches.
        mask_per: `batch` draws one mask for all samples, `image` one for each.
    """
    draws = (draws.shared() if mask_per == "batch" else draws).fork("mixmask")
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    share = low + (high - low) * draws.uniform("ratio", 1)[:, 0]
    if shape == "block":
        patches = where.blockwise_patches(grid, share, draws)
    else:
        patches = where.random_patches(share, draws.uniform("patches", grid, grid))
    return where.to_pixels(patches, images.shape[-1])[:, None].to(images.dtype)


def unmix_weight(draws: Draws, images: Tensor, global_p: float) -> Tensor:
    """Un-Mix's weight of the own image: (1,1,H,W) float32, constant or 0 in a box and 1 outside.

    lambda is uniform (Beta(1,1)). The box has sides of floor(side * sqrt(1 - lambda)) px around a
    random centre and is cut off at the border, so the final lambda is the share outside the box.
    Shen et al. 2022.

    Args:
        draws: random numbers of the batch.
        images: (B,C,H,W).
        global_p: probability of a constant weight.
    """
    side = images.shape[-1]
    share, kind, y, x = draws.shared().fork("unmix").uniform("blend", 4)[0]
    half = torch.floor(side * torch.sqrt(1 - share)) / 2
    pixel = torch.arange(side, device=images.device)
    low, high = (torch.floor(torch.stack([y, x]) * side + sign * half) for sign in (-1, 1))
    inside = (pixel >= low[:, None]) & (pixel < high[:, None])  # (2,side)
    box = 1 - (inside[0][:, None] & inside[1]).to(images.dtype)
    return torch.where(kind < global_p, share.expand_as(box), box)[None, None]
