"""Which patches to mask: pure functions from foreground, counts and noise to (B,U,V) bool.

noise: (B,U,V) float, independent uniforms; the patches with the smallest noise are taken, so that
equal noise gives equal masks on every device. True means masked or foreground.
"""

import math

import torch
from torch import Tensor

from salmask.randomness import Draws


def _smallest(noise: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` (B,) cells of smallest noise inside `among` (B,U,V) bool; all when fewer."""
    keyed = torch.where(among, noise, torch.inf).flatten(1)
    rank = keyed.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count[:, None]).view_as(among) & among


def balanced_patches(foreground: Tensor, ratio: Tensor, noise: Tensor) -> Tensor:
    """The positive's mask: `ratio` of all patches, foreground and background in proportion.

    foreground: (B,U,V) bool. ratio: (B,) in [0,1]. Of N patches with F in the foreground,
    round(ratio*F) are masked there and round(ratio*N) minus that in the background, clamped to
    what exists. Chin et al. 2024, Sec. 3.2.
    """
    total = foreground[0].numel()
    available = foreground.sum(dim=(1, 2))
    inside = torch.round(ratio * available).long()
    outside = (torch.round(ratio * total).long() - inside).clamp(min=0)
    return _smallest(noise, foreground, inside) | _smallest(noise, ~foreground, outside)


def salient_patches(foreground: Tensor, count: Tensor, noise: Tensor) -> Tensor:
    """`count` (B,) patches, all in the foreground (B,U,V) bool, clamped to what exists.

    The hard negative's mask with count = round(beta*F); the `salient only` ablation with
    count = round(alpha*N). Chin et al. 2024, Sec. 3.2 and Table 4.
    """
    return _smallest(noise, foreground, count)


def random_patches(ratio: Tensor, noise: Tensor) -> Tensor:
    """round(ratio*N) patches anywhere: ratio (B,), noise (B,U,V). MSCN's spatial mask."""
    everywhere = torch.ones_like(noise, dtype=torch.bool)
    return _smallest(noise, everywhere, torch.round(ratio * noise[0].numel()).long())


def blockwise_patches(grid: int, ratio: Tensor, draws: Draws, blocks: int = 24) -> Tensor:
    """round(ratio*N) patches in a few rectangles: ratio (B,) in [0,1] -> (B,grid,grid) bool.

    Rectangles of random size, shape and place are laid one after the other, row by row from a
    random corner, until the count is reached, so that it is met exactly on every grid. Areas are
    uniform up to the whole count, aspect ratios log-uniform in [0.3, 1/0.3]. After Bao et al.
    2022, Alg. 1, whose sizes follow what remains.
    """
    total = grid * grid
    count = torch.round(ratio * total)  # (B,)
    u = draws.uniform("blocks", 4, blocks)
    area = 1 + u[:, 0] * (count[:, None] - 1).clamp(min=0)
    stretch = torch.exp((2 * u[:, 1] - 1) * math.log(1 / 0.3))
    sides = torch.stack([area * stretch, area / stretch]).sqrt().round().clamp(1, grid)
    start = (torch.stack([u[:, 2], u[:, 3]]) * (grid - sides + 1)).floor()  # (2,B,T)
    cell = torch.arange(grid, device=ratio.device)
    inside = (cell >= start[..., None]) & (cell < (start + sides)[..., None])  # (2,B,T,grid)
    covered = inside[0][..., :, None] & inside[1][..., None, :]  # (B,T,grid,grid)
    # When is a cell reached: with its first rectangle, and after all of them at random.
    first = torch.where(covered.any(1), covered.int().argmax(1), blocks).flatten(1)
    mirrored = draws.uniform("blocks.corner", 2, 1) < 0.5
    y, x = torch.where(mirrored, grid - 1 - cell, cell).unbind(1)  # (B,grid) each
    order = (y[:, :, None] * grid + x[:, None, :]).flatten(1) / total
    within = torch.where(first < blocks, order, draws.uniform("blocks.rest", total))
    rank = (first + within).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count[:, None]).view(-1, grid, grid)


def to_pixels(patches: Tensor, side: int) -> Tensor:
    """A patch mask (..., U, V) as a pixel mask (..., side, side).

    A pixel belongs to the patch over its corner, so that U and V need not divide the side.
    """
    pixel = torch.arange(side, device=patches.device)
    rows, columns = (pixel * n // side for n in patches.shape[-2:])
    return patches[..., rows, :][..., columns]


def window(noise: Tensor, window_side: int, side: int) -> Tensor:
    """One square window per image at a random place: (B,1,side,side) bool, True inside.

    noise: (B,2) uniforms in [0,1) that place it, on whole pixels. Focal masks: Jing et al. 2022.
    """
    start = (noise * (side - window_side + 1)).long()
    pixel = torch.arange(side, device=noise.device)
    inside = (pixel >= start[..., None]) & (pixel < start[..., None] + window_side)  # (B,2,side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
