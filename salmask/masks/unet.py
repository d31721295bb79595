"""The small U-Net of ADIOS, which divides an image into N soft masks."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "instance"]
_HIDDEN = 128  # units of the perceptron between the blocks down and the blocks up


class UNet(nn.Module):
    """(B,3,side,side) -> soft masks (B,N,side,side), which sum to 1 in every pixel.

    floor(log2(side)) - 1 blocks down, a perceptron over the coarsest map, as many blocks up, a 1x1
    convolution, and a softmax over N. Shi et al. 2022, App. C; the perceptron is from Engelcke et
    al. 2020.

    Args:
        side: side of the views in px.
        masks: N.
        base: channels of the upper half of the blocks; the lower half has twice as many.
        norm: normalisation.

    Raises ValueError for a side that is too small, or that the blocks cannot halve.
    """

    def __init__(self, side: int, masks: int, base: int, norm: Norm) -> None:
        super().__init__()
        blocks = int(math.log2(side)) - 1
        if blocks < 2:
            raise ValueError(f"{side} px is too small for the masker's network; choose 8 or more")
        shrink = 2 ** (blocks - 1)
        coarsest, rest = divmod(side, shrink)
        if rest:
            raise ValueError(
                f"{side} px cannot be halved {blocks - 1} times into whole pixels; choose "
                f"{side - rest} or {side - rest + shrink}"
            )
        widths = [base if i < blocks // 2 else 2 * base for i in range(blocks)]
        self.down = nn.ModuleList(
            _block(a, b, norm) for a, b in zip([3, *widths], widths, strict=False)
        )
        flat = widths[-1] * coarsest**2
        self.middle = nn.Sequential(
            nn.Linear(flat, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, flat),
            nn.ReLU(),
        )
        # input of a block up: the map of the previous block, and that of the matching block down
        rising = widths[::-1]
        self.up = nn.ModuleList(
            _block(2 * a, b, norm) for a, b in zip(rising, [*rising[1:], base], strict=True)
        )
        self.divide = nn.Conv2d(base, masks, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, skipped = images, []
        for i, block in enumerate(self.down):
            if i:
                x = F.interpolate(x, scale_factor=0.5, mode="nearest")
            x = block(x)
            skipped.append(x)
        x = self.middle(x.flatten(1)).view_as(x)
        for i, block in enumerate(self.up):
            if i:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skipped.pop()], dim=1))
        return self.divide(x).float().softmax(dim=1)


def _block(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    groups = math.gcd(8, outputs) if norm == "group" else outputs
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(groups, outputs),  # one group per channel: instance norm
        nn.ReLU(),
    )
