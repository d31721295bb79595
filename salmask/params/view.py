"""The section `view:` of params.yaml."""

from pydantic.dataclasses import dataclass

from salmask.params.ranges import (
    AreaRange,
    Jitter,
    PositiveRange,
    Share,
    SharePerView,
    Side,
    ViewSide,
)
from salmask.params.values import STRICT


@dataclass(frozen=True, config=STRICT)
class ViewConfig:
    """Options of `view:`, the geometry and photometry of one view.

    Args:
        size: side in px.
        shorter: evaluations resize the shorter side of an image to this length in px, and take its
            centre crop of `size`. By default 256/224 of `size`; equal to `size`, nothing is cut
            off a square image.
        grid: patches per side. Must divide `size`, except for masks that mix images.
        crop: range of the area share of a crop.
        aspect: range of the aspect ratio of a crop.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_p: probability of colour jitter.
        gray_p: probability of grayscale.
        blur_p: probability of a Gaussian blur; one number, or [query, key]. Further views use the
            query's.
        blur_sigma: range of the blur's standard deviation in px, at this size.
        solarize_p: probability of solarization; one number, or [query, key].
    """

    size: ViewSide = 224
    shorter: Side | None = None
    grid: Side = 7
    crop: AreaRange = (0.2, 1.0)
    aspect: PositiveRange = (3 / 4, 4 / 3)
    flip: Share = 0.5
    jitter: Jitter = (0.4, 0.4, 0.4, 0.1)
    jitter_p: Share = 0.8
    gray_p: Share = 0.2
    blur_p: SharePerView = 0.5
    blur_sigma: PositiveRange = (0.1, 2.0)
    solarize_p: SharePerView = 0.0

    def __post_init__(self) -> None:
        if self.grid > self.size:
            raise ValueError(f"grid {self.grid} is larger than size {self.size}, in px")
        if self.shorter is not None and self.shorter < self.size:
            raise ValueError(f"shorter {self.shorter} is less than size {self.size}")
