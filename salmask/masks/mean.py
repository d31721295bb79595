"""Saliency-guided masks that are filled with the mean colour of the view (Chin et al. 2024)."""

from torch import Tensor

from salmask.masks import Mask, guided
from salmask.masks.fill import fill_patches
from salmask.masks.guided import HARD_NEGATIVE, Branch, HardNegative, Placement, Where
from salmask.params.ranges import Finite, ShareRange
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def mean(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareRange = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    where: Where = "balanced",
    masked: Branch = "query",
    threshold: Finite = 0.6,
) -> Masked:
    """Masked patches show the mean colour of the view. Chin et al. 2024, Sec. 3.2.

    Args:
        ratio, hard_negative, where, masked, threshold: see `guided.Placement`.
    """

    def paint(images: Tensor, patches: Tensor, purpose: str) -> Tensor:
        return fill_patches(images, mean_color(images), patches)

    placement = Placement(ratio, where, masked, threshold, hard_negative)
    return guided.mask_pair(pair, draws, grid, placement, paint)


def mean_color(images: Tensor) -> Tensor:
    """The mean of each channel of each image, in every pixel: (B,C,H,W) -> (B,C,H,W)."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


MASK = Mask(
    mean,
    label="mean fill",
    reads_saliency=guided.reads_saliency,
    hard_negatives=guided.count_hard_negatives,
    query_only=guided.masks_query_only,
    check=guided.check_options,
)
