"""The kernels of the first convolution of each encoder (as in Jing et al. 2022, Fig. 1c and 8)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salmask.encoders import on_disk as encoder_file
from salmask.report.sheets import WIDTH, Sheet

_SHOWN, _COLUMNS = 64, 16  # kernels of one encoder, and in one row
_ENCODERS_PER_ROW = 3
_TITLE, _GAP = 27, 30  # px of a title, and between encoders
_CELL = 20  # px of a kernel in the mosaic, before it is scaled to the sheet


def first_kernels(folder: Path) -> Tensor:
    """The weights of the first convolution of the encoder in `folder`: (O,3,h,w) float32.

    Raises UserError when there is no encoder.
    """
    network = encoder_file.load(folder, torch.device("cpu")).network
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return first.weight.detach()


def draw(names: Sequence[str], pretrain: Path) -> bytes:
    """PNG with the kernels of each encoder.

    Args:
        names: of the runs and imports, at least one.
        pretrain: the folder that holds the folder of each encoder.
    """
    mosaics = {name: mosaic(first_kernels(pretrain / name)) for name in names}
    wide = (WIDTH - (_ENCODERS_PER_ROW - 1) * _GAP) / _ENCODERS_PER_ROW
    heights = {name: wide * pixels.shape[0] / pixels.shape[1] for name, pixels in mosaics.items()}
    rows = [names[i : i + _ENCODERS_PER_ROW] for i in range(0, len(names), _ENCODERS_PER_ROW)]
    tall = [_TITLE + max(heights[name] for name in row) + _GAP for row in rows]
    sheet, y = Sheet(sum(tall)), 0.0
    for row, height in zip(rows, tall, strict=True):
        for column, name in enumerate(row):
            x = column * (wide + _GAP)
            sheet.text(x, y, name, size=9.5)
            sheet.pixels((x, y + _TITLE, wide, heights[name]), mosaics[name])
        y += height
    return sheet.png()


def mosaic(weights: Tensor) -> NDArray[np.float32]:
    """Kernels (O,3,h,w) side by side: (H,W,4) RGBA in [0,1], transparent between kernels.

    Kernels are sorted by their norm. Zero is gray, and the largest weight has the full colour, so
    kernels that learned nothing are gray. Of more than 64 kernels, 64 are shown that are evenly
    spaced in this order.
    """
    order = weights.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    count = min(_SHOWN, len(order))
    shown = weights[order[torch.arange(count) * len(order) // count]]
    scale = shown.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    colours = (0.5 + 0.5 * shown / scale).permute(0, 2, 3, 1).numpy()
    repeat = max(1, _CELL // colours.shape[1])
    side = repeat * colours.shape[1]
    cell = side + 2
    pixels = np.zeros((-(-count // _COLUMNS) * cell - 2, _COLUMNS * cell - 2, 4), np.float32)
    for index, colour in enumerate(colours):
        y, x = (cell * place for place in divmod(index, _COLUMNS))
        enlarged = colour.repeat(repeat, axis=0).repeat(repeat, axis=1)
        pixels[y : y + enlarged.shape[0], x : x + enlarged.shape[1], :3] = enlarged
        pixels[y : y + enlarged.shape[0], x : x + enlarged.shape[1], 3] = 1
    return pixels
