"""Maps of views, from maps of whole images: cropped, resampled to a grid, blended over levels."""

from collections.abc import Mapping

import torch
from torch import Tensor

from salmask.devices import constant

_SAMPLES = 4  # bilinear samples per side of a cell, which average its area well enough


def zoom_of(boxes: Tensor) -> Tensor:
    """Magnification of each view relative to the whole image: boxes (B,4) -> (B,), at least 1."""
    return 1 / (boxes[:, 2] * boxes[:, 3]).sqrt()


def resample(maps: Tensor, boxes: Tensor, grid: tuple[int, int], margin: int = 0) -> Tensor:
    """Crops maps and resamples them to a grid: (B,U+2*margin,V+2*margin).

    Each cell is the mean of 4x4 bilinear samples. Outside the image, the border cells are repeated.

    Args:
        maps: (B,Us,Vs) float32, of whole images.
        boxes: (B,4) y, x, h, w in [0,1].
        grid: (U, V), cells inside the box.
        margin: additional cells on each side.
    """
    from torchvision.ops import roi_align  # imported here: torchvision takes seconds

    high, wide = maps.shape[1:]
    y, x, h, w = boxes.unbind(1)
    over_y, over_x = margin * h / grid[0], margin * w / grid[1]
    corners = [(x - over_x) * wide, (y - over_y) * high]
    corners += [(x + w + over_x) * wide, (y + h + over_y) * high]
    pad = 1 + margin * max(-(-high // grid[0]), -(-wide // grid[1]))  # roi_align takes 0 outside
    padded = torch.nn.functional.pad(maps[:, None], (pad,) * 4, mode="replicate")
    index = torch.arange(len(maps), device=maps.device, dtype=maps.dtype)
    rois = torch.stack([index, *(corner + pad for corner in corners)], dim=1)
    size = (grid[0] + 2 * margin, grid[1] + 2 * margin)
    return roi_align(padded, rois, size, sampling_ratio=_SAMPLES, aligned=True)[:, 0]


def level_weights(levels: list[int], zoom: Tensor) -> Tensor:
    """Weights of the levels for each view: zoom (B,) -> (L,B). Columns sum to 1.

    The first level is for whole images. A crop of half the side uses the level of twice the
    resolution. Between two levels, weights are linear in the logarithm of the scale.
    """
    scale = constant(tuple(float(level) for level in levels), zoom.device).log()
    target = (scale[0] + zoom.log()).clamp(scale[0], scale[-1])
    if len(levels) == 1:
        return torch.ones((1, len(zoom)), device=zoom.device)
    upper = torch.searchsorted(scale, target).clamp(1, len(levels) - 1)
    share = (target - scale[upper - 1]) / (scale[upper] - scale[upper - 1])
    weights = torch.zeros((len(levels), len(zoom)), device=zoom.device)
    columns = torch.arange(len(zoom), device=zoom.device)
    weights = weights.index_put((upper - 1, columns), 1 - share)
    return weights.index_put((upper, columns), share)


def blend(crops: Mapping[int, Tensor], zoom: Tensor) -> Tensor:
    """The weighted mean over levels: level in px -> (B,U,V), zoom (B,) -> (B,U,V)."""
    levels = sorted(crops)
    weights = level_weights(levels, zoom)
    return (torch.stack([crops[level] for level in levels]) * weights[:, :, None, None]).sum(0)
