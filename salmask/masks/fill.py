"""Fills of masked pixels: pure functions to (B,C,H,W), and `mix`, which applies a fill."""

import torch
from torch import Tensor

from salmask.filters import gaussian_blur, high_pass

__all__ = ["gaussian_noise", "high_pass", "mean_fill", "mix", "strong_blur"]


def strong_blur(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """The blurred images. Chin et al. 2024, Sec. 3.2.

    Args:
        images: (B,C,H,W).
        kernel: size of the Gaussian kernel in px; 31 at 224 px in the paper.
        sigma: standard deviation in px; 10 at 224 px in the paper.
    """
    return gaussian_blur(images, kernel, sigma)


def mean_fill(images: Tensor) -> Tensor:
    """The mean of each channel of each image, in every pixel. Chin et al. 2024, Sec. 3.2."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def gaussian_noise(noise: Tensor, deviation: float | Tensor) -> Tensor:
    """Standard normal noise (B,C,H,W) scaled to a standard deviation, a number or (B,1,1,1)."""
    return noise * deviation


def mix(images: Tensor, filled: Tensor, masked: Tensor) -> Tensor:
    """`filled` where `masked`, else `images`. masked: (B,1,H,W) or (B,C,H,W) bool."""
    return torch.where(masked, filled, images)
