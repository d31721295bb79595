"""The section `view:` of params.yaml."""

import math

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from salmask.params.values import STRICT, PerView, Range


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

    size: PositiveInt = 224
    shorter: PositiveInt | None = None
    grid: PositiveInt = 7
    crop: Range = (0.2, 1.0)
    aspect: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: PerView = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarize_p: PerView = 0.0

    def __post_init__(self) -> None:
        if self.grid > self.size:
            raise ValueError(f"grid {self.grid} is larger than size {self.size}, in px")
        if self.shorter is not None and self.shorter < self.size:
            raise ValueError(f"shorter {self.shorter} is less than size {self.size}")
        for name in ("flip", "jitter_p", "gray_p", "blur_p", "solarize_p"):
            value = getattr(self, name)
            numbers = list(value) if isinstance(value, tuple) else [value]
            if not all(0 <= p <= 1 for p in numbers):
                shown = numbers if isinstance(value, tuple) else value
                raise ValueError(f"{name} must be a probability between 0 and 1, got {shown}")
        for name, most in (("crop", 1), ("aspect", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                bound = " to 1" if most == 1 else ""
                raise ValueError(f"{name} must be [low, high] above 0{bound}, got {[low, high]}")
        if not all(s >= 0 for s in self.jitter) or self.jitter[3] > 0.5:
            raise ValueError(
                "jitter must be at least 0, and its hue at most 0.5 (half a turn), "
                f"got {list(self.jitter)}"
            )
