"""Erasing masks, the comparison of Vishniakov et al. 2023 (preprint), Sec. 4.2."""

from typing import Literal

import torch
from torch import Tensor

from salmask.masks import Mask
from salmask.masks.mixing import MaskPer, Shape, keep_mask, kept_share
from salmask.params.ranges import ShareOrRange
from salmask.pieces import in_pieces
from salmask.randomness import Draws
from salmask.shapes import Masked, Mixed, Pair


def erase(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareOrRange = 0.5,
    shape: Shape = "block",
    mask_per: MaskPer = "batch",
    fill: Literal["zero", "noise"] = "zero",
) -> Masked:
    """Two further queries: the query with the masked part erased, and with the other part erased.

    The positive of both is the image's own key, weighted by the share of the image that is left.
    Vishniakov et al. 2023 (preprint), Sec. 4.2.

    Args:
        ratio, shape, mask_per: see `mixing.keep_mask`.
        fill: value of erased pixels: `zero` (after normalisation) or standard normal `noise`.
    """
    query = pair.query
    kept = keep_mask(draws, query, grid, ratio, shape, mask_per)

    def noise_around(query: Tensor, key: Tensor, kept: Tensor) -> Tensor:
        return Draws(key).normal("erase.noise", *query.shape[1:]).lerp_(query, kept)

    def part(kept: Tensor) -> Tensor:
        if fill == "zero":
            return query * kept
        return in_pieces(noise_around, query, draws.key, kept.expand(len(query), -1, -1, -1))

    share, own = kept_share(kept, query), torch.arange(len(query), device=query.device)
    halves = (Mixed(part(kept), ((own, share),)), Mixed(part(1 - kept), ((own, 1 - share),)))
    return Masked(query, pair.key, mixed=halves)


MASK = Mask(erase, label="erase-based", uneven_patches=True, extra_passes=lambda options: 2)
