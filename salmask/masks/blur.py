"""Saliency-guided masks that are filled with the strongly blurred view (Chin et al. 2024)."""

from torch import Tensor

from salmask.filters import gaussian_blur, scaled, scaled_kernel
from salmask.masks import Mask, guided
from salmask.masks.fill import fill_patches
from salmask.masks.guided import HARD_NEGATIVE, Branch, HardNegative, Placement, Where
from salmask.params.ranges import Finite, Kernel, Positive, ShareRange
from salmask.pieces import in_pieces
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def blur(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareRange = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    where: Where = "balanced",
    masked: Branch = "query",
    threshold: Finite = 0.6,
    kernel: Kernel = 31,
    sigma: Positive = 10.0,
) -> Masked:
    """Masked patches show the strongly blurred view. Chin et al. 2024, Sec. 3.2.

    Args:
        ratio, hard_negative, where, masked, threshold: see `guided.Placement`.
        kernel: size of the Gaussian kernel in px.
        sigma: standard deviation of the Gaussian in px.
    """
    side = pair.query.shape[-1]

    def fill(images: Tensor, patches: Tensor) -> Tensor:
        smooth = gaussian_blur(images, scaled_kernel(kernel, side), scaled(sigma, side))
        return fill_patches(images, smooth, patches)

    def paint(images: Tensor, patches: Tensor, purpose: str) -> Tensor:
        return in_pieces(fill, images, patches)

    placement = Placement(ratio, where, masked, threshold, hard_negative)
    return guided.mask_pair(pair, draws, grid, placement, paint)


MASK = Mask(
    blur,
    label="strong blur",
    reads_saliency=guided.reads_saliency,
    hard_negatives=guided.count_hard_negatives,
    query_only=guided.masks_query_only,
    check=guided.check_options,
)
