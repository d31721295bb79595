"""MixMask together with Un-Mix (Vishniakov et al. 2023, Sec. 3.2)."""

from typing import Literal

from salmask.masks import Mask
from salmask.masks.mixing import MaskPer, Shape, keep_mask, mixture, reversed_rows, unmix_weight
from salmask.params.ranges import Share, ShareOrRange
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def mixmask_star(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareOrRange = 0.5,
    shape: Shape = "block",
    mask_per: MaskPer = "batch",
    global_p: Share = 0.5,
    permutation: Literal["different", "same"] = "different",
) -> Masked:
    """Two mixed queries: one of Un-Mix, one of MixMask. Vishniakov et al. 2023, Sec. 3.2.

    Args:
        ratio, shape, mask_per: see `mixing.keep_mask`.
        global_p: probability that Un-Mix blends whole images.
        permutation: `different` takes MixMask's other images from a random permutation of the
            batch, `same` from the batch in reverse order, as Un-Mix does.
    """
    backwards = reversed_rows(pair.query)
    other = backwards
    if permutation == "different":
        other = draws.uniform("mixmask.permutation", 1)[:, 0].argsort(stable=True)
    kept = keep_mask(draws, pair.query, grid, ratio, shape, mask_per)
    blend = mixture(pair.query, backwards, unmix_weight(draws, pair.query, global_p))
    return Masked(pair.query, pair.key, mixed=(blend, mixture(pair.query, other, kept)))


MASK = Mask(mixmask_star, label="MixMask*", uneven_patches=True, extra_passes=lambda options: 2)
