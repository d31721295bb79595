"""Gaussian filters on batches of images, and the scaling of lengths with the size of the view."""

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.pieces import in_pieces

REFERENCE_SIDE = 224  # px; lengths in the papers are for views of this side
# A blur multiplies blocks of pixels by band matrices. Smaller blocks need fewer operations, larger
# ones share more of what they read.
_BLOCK = 16


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
    reach = kernel // 2
    if kernel % 2 == 0 or reach >= min(h, w):
        raise ValueError(
            f"a blur kernel of {kernel} px does not fit images of {h}x{w}: use an odd "
            f"size of at most {2 * min(h, w) - 1}"
        )
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    sigmas = sigma[:, None] if isinstance(sigma, Tensor) else offsets.new_full((1, 1), sigma)
    taps = torch.exp(-0.5 * (offsets / sigmas) ** 2)
    band = _band(taps / taps.sum(dim=1, keepdim=True))  # (B or 1, _BLOCK, _BLOCK + kernel - 1)
    rest_h, rest_w = -h % _BLOCK, -w % _BLOCK  # pixels that complete the last blocks
    padded = F.pad(images, [reach] * 4, mode="reflect")
    if rest_h or rest_w:
        padded = F.pad(padded, [0, rest_w, 0, rest_h])
    # along rows: (B or 1, all rows and blocks, window) @ (B or 1, window, _BLOCK)
    windows = padded.unfold(3, band.shape[2], _BLOCK).reshape(len(band), -1, band.shape[2])
    rows = torch.bmm(windows, band.mT).view(b, c, -1, w + rest_w)
    # along columns: (B*C*blocks, _BLOCK, window) @ (B*C*blocks, window, W)
    windows = rows.unfold(2, band.shape[2], _BLOCK).mT
    bands = band[:, None, None].expand(b, *windows.shape[1:3], -1, -1)
    result = torch.bmm(bands.flatten(0, 2), windows.flatten(0, 2)).view(b, c, -1, w + rest_w)
    return result[:, :, :h, :w]


def _band(taps: Tensor) -> Tensor:
    """The matrices that filter `_BLOCK` pixels: taps (n, kernel) -> (n, _BLOCK, _BLOCK + kernel -
    1). Row i holds the taps from column i on."""
    count, kernel = taps.shape
    width = _BLOCK + kernel - 1
    rows = F.pad(taps, (0, _BLOCK)).repeat(1, _BLOCK)  # each row is one longer than the width
    return rows[:, : _BLOCK * width].view(count, _BLOCK, width)


def high_pass(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """x - gaussian_blur(x): (B,C,H,W) -> (B,C,H,W). Jing et al. 2022, Sec. 5.1; Chin et al. 2024,
    Sec. 3.2."""
    return in_pieces(lambda piece: piece - gaussian_blur(piece, kernel, sigma), images)
