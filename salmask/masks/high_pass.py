"""Saliency-guided noise masks on high-pass filtered views (Chin et al. 2024)."""

from functools import partial

from torch import Tensor

from salmask import filters
from salmask.filters import scaled, scaled_kernel
from salmask.masks import Mask, guided
from salmask.masks.guided import HARD_NEGATIVE, Branch, HardNegative, Placement, Where
from salmask.masks.noise import add_noise, high_pass_filter
from salmask.params.ranges import Finite, Kernel, NonNegative, Positive, Share, ShareRange
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def high_pass(
    pair: Pair,
    draws: Draws,
    grid: int,
    *,
    ratio: ShareRange = (0.05, 0.25),
    hard_negative: HardNegative | None = HARD_NEGATIVE,
    where: Where = "balanced",
    masked: Branch = "query",
    threshold: Finite = 0.6,
    kernel: Kernel = 11,
    sigma: Positive = 5.0,
    focal: Share = 0.2,
    channel: Share = 0.7,
    focal_keep: Positive = 200.0,
    focal_drop: Positive = 130.0,
    noise: NonNegative = 0.18,
    hard_negative_noise: NonNegative = 0.14,
) -> Masked:
    """All views are high-pass filtered, and masked areas are filled with Gaussian noise.

    Each image gets one of three kinds of mask: a focal mask, which ignores saliency; patches drawn
    for each colour channel; or patches shared by all channels. Chin et al. 2024, Sec. 3.2.

    Args:
        ratio, hard_negative, where, masked, threshold: see `guided.Placement`.
        kernel: size of the high-pass filter's Gaussian kernel in px.
        sigma: standard deviation of this Gaussian in px.
        focal: probability of a focal mask.
        channel: probability of a mask for each channel, if the mask is not focal.
        focal_keep: side in px of the window that a focal positive keeps.
        focal_drop: side in px of the window that a focal hard negative loses.
        noise: standard deviation of the noise in positives.
        hard_negative_noise: standard deviation of the noise in hard negatives.
    """
    side = pair.query.shape[-1]
    sharpen = partial(
        filters.high_pass, kernel=scaled_kernel(kernel, side), sigma=scaled(sigma, side)
    )
    noisy = partial(add_noise, draws=draws, focal=focal, channel=channel)

    def paint(images: Tensor, patches: Tensor, purpose: str) -> Tensor:
        if purpose.startswith("negative"):
            return noisy(
                images, patches, purpose, window=focal_drop, inside=True, noise=hard_negative_noise
            )
        return noisy(images, patches, purpose, window=focal_keep, inside=False, noise=noise)

    filtered = Pair(
        sharpen(pair.query), sharpen(pair.key), pair.query_activation, pair.key_activation
    )
    placement = Placement(ratio, where, masked, threshold, hard_negative)
    return guided.mask_pair(filtered, draws, grid, placement, paint, layers=3)


MASK = Mask(
    high_pass,
    label="high-pass",
    reads_saliency=guided.reads_saliency,
    hard_negatives=guided.count_hard_negatives,
    query_only=guided.masks_query_only,
    input_filter=high_pass_filter,
    check=guided.check_options,
    kinds={
        "spatial": {"focal": 0.0, "channel": 0.0},
        "per channel": {"focal": 0.0, "channel": 1.0},
        "focal": {"focal": 1.0},
    },
)
