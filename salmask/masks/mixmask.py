"""MixMask (Vishniakov et al. 2023): masked patches show another image of the batch."""

from salmask.masks import Mask
from salmask.masks.mixing import MaskPer, Shape, keep_mask, mixture, reversed_rows
from salmask.params.ranges import ShareOrRange
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def mixmask(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareOrRange = 0.5,
    shape: Shape = "block",
    mask_per: MaskPer = "batch",
    switch: bool = True,
) -> Masked:
    """Masked patches of the query show the batch in reverse order. Vishniakov et al. 2023.

    Args:
        ratio, shape, mask_per: see `mixing.keep_mask`.
        switch: whether the key of the other image is a positive too.
    """
    kept = keep_mask(draws, pair.query, grid, ratio, shape, mask_per)
    mixed = mixture(pair.query, reversed_rows(pair.query), kept, switch)
    return Masked(pair.query, pair.key, mixed=(mixed,))


MASK = Mask(
    mixmask,
    label="MixMask",
    uneven_patches=True,
    extra_passes=lambda options: 1,
    kinds={"blocks": {"shape": "block"}, "discrete": {"shape": "discrete"}},
)
