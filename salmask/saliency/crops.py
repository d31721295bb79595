"""Maps of whole images as a view sees them: cropped, resampled to its grid, blended over levels."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.ops import roi_align

_SAMPLES = 4  # bilinear samples a side of a cell: enough for area-true averages


def zoom_of(boxes: Tensor) -> Tensor:
    """How much larger an image appears in each view than whole: boxes (B,4) -> (B,) >= 1."""
    return 1 / (boxes[:, 2] * boxes[:, 3]).sqrt()


def resample(maps: Tensor, boxes: Tensor, grid: tuple[int, int], margin: int = 0) -> Tensor:
    """Boxes of maps on a grid, with `margin` more cells on every side.

    maps: (B,Us,Vs) float32 of whole images. boxes: (B,4) y, x, h, w in [0,1]. Returns
    (B,U+2*margin,V+2*margin). Each cell is the mean of 4x4 bilinear reads of the map under it;
    beyond the image its rim goes on.
    """
    high, wide = maps.shape[1:]
    y, x, h, w = boxes.unbind(1)
    over_y, over_x = margin * h / grid[0], margin * w / grid[1]
    corners = [(x - over_x) * wide, (y - over_y) * high]
    corners += [(x + w + over_x) * wide, (y + h + over_y) * high]
    pad = 1 + margin * max(-(-high // grid[0]), -(-wide // grid[1]))  # roi_align reads 0 outside
    padded = torch.nn.functional.pad(maps[:, None], (pad,) * 4, mode="replicate")
    index = torch.arange(len(maps), device=maps.device, dtype=maps.dtype)
    rois = torch.stack([index, *(corner + pad for corner in corners)], dim=1)
    size = (grid[0] + 2 * margin, grid[1] + 2 * margin)
    return roi_align(padded, rois, size, sampling_ratio=_SAMPLES, aligned=True)[:, 0]


def level_weights(levels: list[int], zoom: Tensor) -> Tensor:
    """How much each level counts at a zoom (B,): (L,B), columns sum to 1.

    The first level is the one for whole images: a crop that covers half the side reads the level
    of twice the resolution. Between two levels, weights are linear in the logarithm of scale.
    """
    scale = torch.tensor(levels, dtype=torch.float32, device=zoom.device).log()
    wanted = (scale[0] + zoom.log()).clamp(scale[0], scale[-1])
    if len(levels) == 1:
        return torch.ones((1, len(zoom)), device=zoom.device)
    upper = torch.searchsorted(scale, wanted).clamp(1, len(levels) - 1)
    share = (wanted - scale[upper - 1]) / (scale[upper] - scale[upper - 1])
    weights = torch.zeros((len(levels), len(zoom)), device=zoom.device)
    columns = torch.arange(len(zoom), device=zoom.device)
    weights = weights.index_put((upper - 1, columns), 1 - share)
    return weights.index_put((upper, columns), share)


def blend(crops: Mapping[int, Tensor], zoom: Tensor) -> Tensor:
    """One map from those of all levels: level in px -> (B,U,V), zoom (B,) -> (B,U,V)."""
    levels = sorted(crops)
    weights = level_weights(levels, zoom)
    return (torch.stack([crops[level] for level in levels]) * weights[:, :, None, None]).sum(0)
