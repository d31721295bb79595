"""Gaussian filters on batches of images, and the scaling of lengths with the size of the view."""

import torch
import torch.nn.functional as F
from torch import Tensor

REFERENCE_SIDE = 224  # px; lengths in the papers are for views of this side


def scaled(value: float, side: int) -> float:
    """The length at `side` px that corresponds to `value` px at 224 px."""
    return value * side / REFERENCE_SIDE


def scaled_kernel(size: int, side: int) -> int:
    """The kernel size at `side` px that corresponds to `size` px at 224 px: the nearest odd number,
    at least 3."""
    return max(3, 2 * round((scaled(size, side) - 1) / 2) + 1)


def gaussian_blur(images: Tensor, kernel: int, sigma: float | Tensor) -> Tensor:
    """Separable Gaussian blur with reflected borders: (B,C,H,W) -> (B,C,H,W).

    Args:
        images: (B,C,H,W).
        kernel: size in px, odd.
        sigma: standard deviation in px, a number or one per image (B,).

    Raises ValueError for an even kernel, and for a kernel that is too large for the images.
    """
    b, c, h, w = images.shape
    if kernel % 2 == 0 or kernel // 2 >= min(h, w):
        raise ValueError(
            f"a blur kernel of {kernel} px does not fit images of {h}x{w}: use an odd "
            f"size of at most {2 * min(h, w) - 1}"
        )
    sigmas = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).expand(b)
    offsets = torch.arange(kernel, dtype=images.dtype, device=images.device) - kernel // 2
    taps = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)  # (B*C, kernel)
    planes = F.pad(images, [kernel // 2] * 4, mode="reflect").reshape(1, b * c, h + kernel - 1, -1)
    planes = F.conv2d(planes, taps[:, None, :, None], groups=b * c)
    planes = F.conv2d(planes, taps[:, None, None, :], groups=b * c)
    return planes.reshape(b, c, h, w)


def high_pass(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """x - gaussian_blur(x): (B,C,H,W) -> (B,C,H,W). Jing et al. 2022, Sec. 5.1; Chin et al. 2024,
    Sec. 3.2."""
    return images - gaussian_blur(images, kernel, sigma)
