"""What replaces masked pixels: pure functions to (B,C,H,W), and `mix` that applies one."""

import torch
from torch import Tensor

from salmask.filters import gaussian_blur, high_pass

__all__ = ["gaussian_noise", "high_pass", "mean_fill", "mix", "strong_blur"]


def strong_blur(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """The blurred images. kernel, sigma in px: 31 and 10 at 224 px. Chin et al. 2024, Sec. 3.2."""
    return gaussian_blur(images, kernel, sigma)


def mean_fill(images: Tensor) -> Tensor:
    """Each image's own mean per channel, everywhere. Chin et al. 2024, Sec. 3.2."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def gaussian_noise(noise: Tensor, deviation: float | Tensor) -> Tensor:
    """Zero-mean noise of a deviation (a number or (B,1,1,1)); noise: (B,C,H,W) standard normal."""
    return noise * deviation


def mix(images: Tensor, filled: Tensor, masked: Tensor) -> Tensor:
    """`filled` where `masked`, else `images`. masked: bool, (B,1,H,W) or (B,C,H,W)."""
    return torch.where(masked, filled, images)
