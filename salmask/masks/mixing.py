"""Masks that are filled from other images, and the erasing one that they are compared with.

The framework's own loss on the clean views stays; a mixed query adds one term for each image that
it shows, weighed by that image's share (Vishniakov et al. 2023; Shen et al. 2022). A mask is True,
or 1, where a sample keeps its own pixels. One mask per batch unless said otherwise.
"""

from typing import Literal

import torch
from torch import Tensor

from salmask.masks import where
from salmask.params.values import Share, ShareOrRange
from salmask.randomness import Draws
from salmask.shapes import Masked, Mixed, Pair

Shape = Literal["block", "discrete"]


def mixmask(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareOrRange = 0.5,
    shape: Shape = "block",
    mask_per: Literal["batch", "image"] = "batch",
    switch: bool = True,
) -> Masked:
    """Patches of the query come from the batch read backwards. Vishniakov et al. 2023.

    ratio: the share of an image that it keeps, fixed or drawn between two bounds. shape: of the
    mask, rectangles or single patches. switch: whether the other image's key counts as well.
    """
    kept = _kept(draws, pair.query, grid, ratio, shape, mask_per)
    mixed = _mixture(pair.query, _reversed(pair.query), kept, switch)
    return Masked(pair.query, pair.key, mixed=(mixed,))


def unmix(pair: Pair, draws: Draws, grid: int, *, global_p: Share = 0.5) -> Masked:
    """The query is blended with the batch read backwards, or a box of it is. Shen et al. 2022.

    global_p: how often it is a blend; 0 on ImageNet, where Un-Mix stands alone.
    """
    mixed = _mixture(pair.query, _reversed(pair.query), _unmix_share(draws, pair.query, global_p))
    return Masked(pair.query, pair.key, mixed=(mixed,))


def mixmask_star(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareOrRange = 0.5,
    shape: Shape = "block",
    mask_per: Literal["batch", "image"] = "batch",
    global_p: Share = 0.5,
    permutation: Literal["different", "same"] = "different",
) -> Masked:
    """Un-Mix and MixMask together, the latter with a random permutation of the batch.

    permutation: `same` mixes both with the batch read backwards. Vishniakov et al. 2023, Sec. 3.2.
    """
    backwards = _reversed(pair.query)
    other = backwards
    if permutation == "different":
        other = draws.uniform("mixmask.permutation", 1)[:, 0].argsort(stable=True)
    kept = _kept(draws, pair.query, grid, ratio, shape, mask_per)
    blend = _mixture(pair.query, backwards, _unmix_share(draws, pair.query, global_p))
    return Masked(pair.query, pair.key, mixed=(blend, _mixture(pair.query, other, kept)))


def erase(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareOrRange = 0.5,
    shape: Shape = "block",
    mask_per: Literal["batch", "image"] = "batch",
    fill: Literal["zero", "noise"] = "zero",
) -> Masked:
    """Both halves of the query that a mask divides, each with the rest erased; both are pulled to
    the image's own key, weighed by their shares. Vishniakov et al. 2023 (preprint), Sec. 4.2.

    fill: what erased pixels become: 0 after normalisation, or standard normal noise.
    """
    query = pair.query
    kept = _kept(draws, query, grid, ratio, shape, mask_per)
    empty = torch.zeros_like(query)
    if fill == "noise":
        empty = draws.normal("erase.noise", *query.shape[1:]).to(query.dtype)
    share, itself = _share(kept, query), torch.arange(len(query), device=query.device)
    halves = (
        Mixed(torch.lerp(empty, query, kept), ((itself, share),)),
        Mixed(torch.lerp(query, empty, kept), ((itself, 1 - share),)),
    )
    return Masked(query, pair.key, mixed=halves)


def _mixture(images: Tensor, other: Tensor, kept: Tensor, switch: bool = True) -> Mixed:
    """kept * x_i + (1 - kept) * x_other(i). other: (B,) int64. kept: (1 or B,1,H,W) in [0,1]."""
    share = _share(kept, images)
    positives = [(torch.arange(len(images), device=images.device), share), (other, 1 - share)]
    return Mixed(torch.lerp(images[other], images, kept), tuple(positives[: 1 + switch]))


def _share(kept: Tensor, images: Tensor) -> Tensor:
    """lambda: the share of its own pixels that each sample keeps, (B,)."""
    return kept.mean(dim=(1, 2, 3)).expand(len(images))


def _reversed(images: Tensor) -> Tensor:
    return torch.arange(len(images), device=images.device).flip(0)


def _kept(
    draws: Draws, images: Tensor, grid: int, ratio: ShareOrRange, shape: Shape, mask_per: str
) -> Tensor:
    """Where samples keep their own pixels: (1 or B,1,H,W) float32 of 0 and 1."""
    draws = (draws.shared() if mask_per == "batch" else draws).fork("mixmask")
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    share = low + (high - low) * draws.uniform("ratio", 1)[:, 0]
    if shape == "block":
        patches = where.blockwise_patches(grid, share, draws)
    else:
        patches = where.random_patches(share, draws.uniform("patches", grid, grid))
    return where.to_pixels(patches, images.shape[-1])[:, None].to(images.dtype)


def _unmix_share(draws: Draws, images: Tensor, global_p: float) -> Tensor:
    """Un-Mix's weight of the own image: one number everywhere, or 0 in a box: (1,1,H,W) float32.

    lambda is uniform (Beta(1,1)); the box has sides of floor(side * sqrt(1 - lambda)) px around a
    random centre and is cut off at the border, so that its share decides the final lambda.
    """
    side = images.shape[-1]
    share, chance, y, x = draws.shared().fork("unmix").uniform("blend", 4)[0]
    half = torch.floor(side * torch.sqrt(1 - share)) / 2
    pixel = torch.arange(side, device=images.device)
    low, high = (torch.floor(torch.stack([y, x]) * side + sign * half) for sign in (-1, 1))
    inside = (pixel >= low[:, None]) & (pixel < high[:, None])  # (2,side)
    box = 1 - (inside[0][:, None] & inside[1]).to(images.dtype)
    return torch.where(chance < global_p, share.expand_as(box), box)[None, None]
