"""Selection of the patches to mask: pure functions to (B,U,V) bool, True where masked.

`noise` is (B,U,V) float, independent and uniform in [0,1). The patches with the smallest noise are
selected, so equal noise gives equal masks on every device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from salmask.randomness import Draws


def _smallest(noise: Tensor, groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The patches of smallest noise in disjoint groups, or all of a group if there are fewer.

    Args:
        noise: (B,U,V).
        groups: patches (B,U,V) bool, and how many of them to select (B,).
    """
    order = noise.flatten(1).argsort(dim=1, stable=True)
    selected = torch.zeros_like(order, dtype=torch.bool)
    for among, count in groups:
        inside = among.flatten(1).gather(1, order)
        selected |= inside & (inside.cumsum(dim=1) <= count[:, None])
    return torch.zeros_like(selected).scatter_(1, order, selected).view_as(noise)


def balanced_patches(foreground: Tensor, ratio: Tensor, noise: Tensor) -> Tensor:
    """The mask of a positive: `ratio` of all patches, foreground and background in proportion.

    Of N patches, F belong to the foreground. The mask covers round(ratio*F) patches of the
    foreground and round(ratio*N) - round(ratio*F) of the background, or all if there are fewer.
    Chin et al. 2024, Sec. 3.2.

    Args:
        foreground: (B,U,V) bool.
        ratio: (B,) in [0,1].
        noise: (B,U,V).
    """
    total = foreground[0].numel()
    available = foreground.sum(dim=(1, 2))
    inside = torch.round(ratio * available).long()
    outside = (torch.round(ratio * total).long() - inside).clamp(min=0)
    return _smallest(noise, [(foreground, inside), (~foreground, outside)])


def salient_patches(foreground: Tensor, count: Tensor, noise: Tensor) -> Tensor:
    """`count` (B,) patches of the foreground (B,U,V) bool, or as many as there are.

    With count = round(beta*F) this is the mask of a hard negative, with count = round(alpha*N) the
    ablation "salient only". Chin et al. 2024, Sec. 3.2 and Table 4.
    """
    return _smallest(noise, [(foreground, count)])


def random_patches(ratio: Tensor, noise: Tensor) -> Tensor:
    """round(ratio*N) of all N patches: ratio (B,), noise (B,U,V). Jing et al. 2022, Sec. 5.2."""
    everywhere = torch.ones_like(noise, dtype=torch.bool)
    return _smallest(noise, [(everywhere, torch.round(ratio * noise[0].numel()).long())])


def blockwise_patches(grid: int, ratio: Tensor, draws: Draws, blocks: int = 24) -> Tensor:
    """round(ratio*N) patches in a few rectangles: ratio (B,) in [0,1] -> (B,grid,grid) bool.

    Rectangles of random size, shape and position are filled one after the other, row by row from
    a random corner, until exactly the count is reached. Areas are uniform up to the count, aspect
    ratios log-uniform in [0.3, 1/0.3]. After Bao et al. 2022, Alg. 1, which limits the size of
    each rectangle by the remaining count.

    Args:
        grid: patches per side.
        ratio: share of masked patches.
        draws: random numbers of the batch.
        blocks: number of rectangles that are drawn.
    """
    total = grid * grid
    count = torch.round(ratio * total)  # (B,)
    u = draws.uniform("blocks", 4, blocks)
    area = 1 + u[:, 0] * (count[:, None] - 1).clamp(min=0)
    stretch = torch.exp((2 * u[:, 1] - 1) * math.log(1 / 0.3))
    sides = torch.stack([area * stretch, area / stretch]).sqrt().round().clamp(1, grid)
    start = (torch.stack([u[:, 2], u[:, 3]]) * (grid - sides + 1)).floor()  # (2,B,T)
    index = torch.arange(grid, device=ratio.device)
    inside = (index >= start[..., None]) & (index < (start + sides)[..., None])  # (2,B,T,grid)
    covered = inside[0][..., :, None] & inside[1][..., None, :]  # (B,T,grid,grid)
    # The rank of a patch: that of its first rectangle; patches in no rectangle follow at random.
    first = torch.where(covered.any(1), covered.int().argmax(1), blocks).flatten(1)
    mirrored = draws.uniform("blocks.corner", 2, 1) < 0.5
    y, x = torch.where(mirrored, grid - 1 - index, index).unbind(1)  # (B,grid) each
    order = (y[:, :, None] * grid + x[:, None, :]).flatten(1) / total
    within = torch.where(first < blocks, order, draws.uniform("blocks.rest", total))
    rank = (first + within).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count[:, None]).view(-1, grid, grid)


def to_pixels(patches: Tensor, side: int) -> Tensor:
    """A patch mask (..., U, V) as a pixel mask (..., side, side).

    A pixel belongs to the patch that contains its corner, so U and V need not divide the side.
    """
    pixel = torch.arange(side, device=patches.device)
    rows, columns = (pixel * n // side for n in patches.shape[-2:])
    return patches[..., rows, :][..., columns]


def window(noise: Tensor, window_side: int, side: int) -> Tensor:
    """One square window per image at a random position: (B,1,side,side) bool, True inside.

    The window of focal masks (Jing et al. 2022, Sec. 5.2). It starts at whole pixels.

    Args:
        noise: (B,2), uniform in [0,1): position.
        window_side: side of the window in px.
        side: side of the view in px.
    """
    start = (noise * (side - window_side + 1)).long()
    pixel = torch.arange(side, device=noise.device)
    inside = (pixel >= start[..., None]) & (pixel < start[..., None] + window_side)  # (B,2,side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
