"""Views for tests of masks, and measurements of masks from pixels.

Only `apply` calls the code under test. Eq. 1 is computed cell by cell, and the Gaussian blur is
that of torchvision.
"""

from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from salmask.masks.options import function_of
from salmask.params.values import Choice
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair

# side in px -> kernel and sigma in px there: x * side / 224, kernels to the nearest odd >= 3
HIGH_PASS = {32: (3, 5 / 7), 64: (3, 10 / 7), 224: (11, 5.0)}  # 11 and 5 at 224
BLUR = {32: (5, 10 / 7), 64: (9, 20 / 7), 224: (31, 10.0)}  # 31 and 10 at 224


_FUNCTIONS: dict[str, Callable[..., Masked]] = {}


def scene(batch: int, side: int, grid: int, *, seed: int = 0, extra: int = 0) -> Pair:
    """Views of noise, with different activation maps for query and key."""
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(batch, 3, side, side, generator=generator) for _ in range(2 + extra)]
    maps = [torch.rand(batch, grid, grid, generator=generator) ** 3 for _ in range(2)]
    return Pair(views[0], views[1], maps[0], maps[1], tuple(views[2:]))


def checkered(batch: int, side: int, grid: int, *, extra: int = 0) -> Pair:
    """Views with a checkerboard of +-100, all foreground. Blurring removes it, so the noise of a
    high-pass mask shows as values far from +-100."""
    pixel = torch.arange(side)
    board = 100.0 - 200.0 * ((pixel[:, None] + pixel) % 2)
    view, flat = board.expand(batch, 3, side, side).contiguous(), torch.ones(batch, grid, grid)
    return Pair(view, view, flat, flat, (view,) * extra)


def is_noise(view: Tensor) -> Tensor:
    """Where a masked `checkered` view is noise: bool of the same shape."""
    return view.abs() < 50


def draws_for(batch: int, seed: int = 0) -> Draws:
    return Draws.of(seed, 0, torch.arange(batch))


def apply(name: str, pair: Pair, grid: int, seed: int = 0, **options: Any) -> Masked:
    """The mask `name` with these options, for samples 0, 1, ..."""
    key = f"{name} {options}"  # options are checked once
    if key not in _FUNCTIONS:
        _FUNCTIONS[key] = function_of(Choice(name, options))
    return _FUNCTIONS[key](pair, draws_for(len(pair.query), seed), grid)


def part(pair: Pair, rows: list[int]) -> Pair:
    """The same views of some of the samples."""
    maps = [m if m is None else m[rows] for m in (pair.query_activation, pair.key_activation)]
    return Pair(pair.query[rows], pair.key[rows], *maps, tuple(v[rows] for v in pair.extra))


def tensors(masked: Masked) -> list[Tensor]:
    """All tensors that a mask returned, in order."""
    parts = [masked.query, masked.key, *masked.negatives, *masked.extra]
    for mixed in masked.mixed:
        parts += [mixed.images, *(t for pair in mixed.positives for t in pair)]
    return parts


def salient(activation: Tensor) -> Tensor:
    """Chin et al. 2024, Eq. 1, cell by cell: (B,U,V) -> (B,U,V) bool."""
    parts = []
    for rows in activation.double().tolist():
        cells = [value for row in rows for value in row]
        bar = fmean(cells) - 0.6 * pstdev(cells)
        parts.append([[value >= bar for value in row] for row in rows])
    return torch.tensor(parts)


def rounded(count: Tensor | int, value: float) -> bool:
    """Whether a count is the rounded value; a half may be rounded up or down."""
    return abs(int(count) - value) <= 0.5 + 1e-5


def cells_of(pixels: Tensor, grid: int) -> Tensor:
    """Pixels (B,3,H,W) bool as patches (B,3,U,V) bool. A patch must be masked completely or not."""
    share = pixels.float().unflatten(2, (grid, -1)).unflatten(4, (grid, -1)).mean((3, 5))
    assert ((share == 0) | (share > 0.9)).all()  # noise can equal a pixel's value
    return share > 0


def masked_cells(before: Tensor, after: Tensor, grid: int, tolerance: float = 0.0) -> Tensor:
    """Which patches differ, per channel: (B,3,U,V) bool."""
    return cells_of((before - after).abs() > tolerance, grid)


def shared_cells(before: Tensor, after: Tensor, grid: int, tolerance: float = 0.0) -> Tensor:
    """Which patches differ, equal in all channels: (B,U,V) bool."""
    cells = masked_cells(before, after, grid, tolerance)
    assert torch.equal(cells, cells[:, :1].expand_as(cells))
    return cells[:, 0]


def as_pixels(cells: Tensor, side: int) -> Tensor:
    """Patches (...,U,V) as blocks of pixels (...,side,side), for grids that divide the side."""
    patch = side // cells.shape[-1]
    return cells.repeat_interleave(patch, -2).repeat_interleave(patch, -1)


def blurred(images: Tensor, kernel: int, sigma: float) -> Tensor:
    return reference.gaussian_blur(images, [kernel, kernel], [sigma, sigma])


def high_passed(images: Tensor) -> Tensor:
    return images - blurred(images, *HIGH_PASS[images.shape[-1]])


def filling(name: str, images: Tensor) -> Tensor:
    """The fill of the masks `blur` and `mean`."""
    if name == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    return blurred(images, *BLUR[images.shape[-1]])


def correlation(first: Tensor, second: Tensor) -> float:
    both = torch.stack([first.flatten().double(), second.flatten().double()])
    return torch.corrcoef(both)[0, 1].item()


def window_of(inside: Tensor) -> tuple[int, int, int]:
    """Top, left and side of the only square of True in (H,W) bool. Fails if there is none."""
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    top, left = int(rows[0]), int(columns[0])
    side = int(rows[-1]) - top + 1
    assert int(columns[-1]) - left + 1 == side
    assert inside[top : top + side, left : left + side].all()
    return top, left, side
