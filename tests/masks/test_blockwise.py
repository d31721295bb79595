"""Masks of few rectangles that reach their ratio on every grid (Vishniakov et al. 2023)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmask.masks.where import blockwise_patches
from salmask.randomness import Draws

GRIDS = [2, 3, 4, 7, 8, 14, 16, 32, 48]
RATIOS = [0.0, 0.1, 0.25, 0.4, 0.5, 0.75, 1.0]


def blocks(batch: int, grid: int, ratio: float, seed: int = 0) -> Tensor:
    draws = Draws.of(seed, 0, torch.arange(batch))
    return blockwise_patches(grid, torch.full((batch,), ratio), draws)


def edges(mask: Tensor) -> int:
    """The number of pairs of adjacent cells that differ in (U,V) bool."""
    rows, count = mask.tolist(), 0
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if y + 1 < len(rows) and rows[y + 1][x] != cell:
                count += 1
            if x + 1 < len(row) and row[x + 1] != cell:
                count += 1
    return count


def regions(mask: Tensor) -> int:
    """The number of connected regions of True in (U,V) bool."""
    left = {(int(y), int(x)) for y, x in mask.nonzero()}
    count = 0
    while left:
        count += 1
        reached = [left.pop()]
        while reached:
            y, x = reached.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left:
                    left.remove(near)
                    reached.append(near)
    return count


def discrete(grid: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random cells."""
    cells = torch.zeros(grid * grid, dtype=torch.bool)
    cells[torch.randperm(grid * grid, generator=generator)[:count]] = True
    return cells.view(grid, grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_ratio_is_met_exactly(grid: int, ratio: float) -> None:
    masks = blocks(64, grid, ratio)
    assert masks.shape == (64, grid, grid) and masks.dtype == torch.bool
    assert torch.equal(masks.sum((1, 2)), torch.full((64,), round(ratio * grid**2)))


@given(
    grid=st.integers(1, 20),
    ratios=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_any_ratio_is_met_within_half_a_cell(grid: int, ratios: list[float], seed: int) -> None:
    draws = Draws.of(seed, 0, torch.arange(len(ratios)))
    for mask, ratio in zip(
        blockwise_patches(grid, torch.tensor(ratios), draws), ratios, strict=True
    ):
        assert abs(int(mask.sum()) - ratio * grid**2) <= 0.5 + 1e-4


def test_two_by_two_is_never_empty() -> None:
    """The public sampler leaves 94% of these without a masked cell."""
    masks = blocks(2000, 2, 0.5)
    assert torch.equal(masks.sum((1, 2)), torch.full((2000,), 2))
    # each half is one rectangle, and as likely as the others; the diagonals take two
    for half in (masks[:, 0], masks[:, 1], masks[:, :, 0], masks[:, :, 1]):
        assert 0.15 < half.all(1).float().mean() < 0.35


@pytest.mark.parametrize("grid", [8, 14, 16])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_cells_form_connected_regions(generator: torch.Generator, grid: int, ratio: float) -> None:
    """Far fewer edges and regions than the same number of random cells."""
    masks = blocks(100, grid, ratio)
    scattered = [discrete(grid, round(ratio * grid**2), generator) for _ in range(100)]
    assert sum(map(edges, masks)) < 0.6 * sum(map(edges, scattered))
    if ratio < 0.6:  # with more cells, random cells are connected too
        assert sum(map(regions, masks)) < 0.6 * sum(map(regions, scattered))


def test_rectangles_are_wide_and_tall() -> None:
    """Four cells in one rectangle are a square, a row or a column; the last two equally often."""
    boxes = []
    for mask in blocks(4000, 8, 4 / 64):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = (int(edge[-1] - edge[0]) + 1 for edge in (rows, columns))
        if height * width == 4:
            boxes.append((height, width))
    square, row, column = (boxes.count(box) for box in ((2, 2), (1, 4), (4, 1)))
    assert min(square, row, column) > 15
    assert abs(row - column) < 4 * (row + column) ** 0.5


def test_masks_differ_between_samples_and_seeds() -> None:
    masks = torch.cat([blocks(50, 8, 0.5), blocks(50, 8, 0.5, seed=1)])
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 90


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_no_side_is_favoured(ratio: float) -> None:
    """Rectangles overlap in the middle, but equally under reflection and transposition: cutting
    the last one short must not leave the bottom of the view to the other image."""
    share = blocks(4000, 8, ratio).float().mean(0)
    assert share.mean().item() == pytest.approx(ratio, abs=1e-6)
    assert share.min() > 0.2 * ratio and share.max() < 0.9  # every cell is masked in some masks
    for other in (share.flip(0), share.flip(1), share.T):
        # four deviations of a difference of two shares
        torch.testing.assert_close(share, other, atol=4 * (0.5 / 4000) ** 0.5, rtol=0)
    halves = (share[:4].mean(), share[4:].mean(), share[:, :4].mean(), share[:, 4:].mean())
    assert max(halves) - min(halves) < 0.02


@given(grid=st.integers(2, 9), seed=st.integers(0, 10**6), order=st.permutations(range(5)))
def test_a_mask_does_not_depend_on_its_batch(grid: int, seed: int, order: list[int]) -> None:
    ratio = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    together = blockwise_patches(grid, ratio, Draws.of(seed, 0, torch.arange(5)))
    rows = order[:3]
    apart = blockwise_patches(grid, ratio[rows], Draws.of(seed, 0, torch.tensor(rows)))
    assert torch.equal(apart, together[rows])


def test_draws_decide_alone() -> None:
    assert torch.equal(blocks(10, 7, 0.4, seed=5), blocks(10, 7, 0.4, seed=5))
