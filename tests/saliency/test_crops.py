import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.saliency import crops
from salmask.saliency.store import SaliencyStore

GRIDS = {64: (2, 2), 128: (4, 3)}
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
UNFLIPPED = torch.tensor([False])


def in_memory(*maps: torch.Tensor) -> SaliencyStore:
    """A store of one image with a map per level; levels 64, 128, ..."""
    return SaliencyStore({}, {64 * 2**i: m[None].half() for i, m in enumerate(maps)})


# ------------------------------------------------------------------------------------- crops

RAMP = torch.arange(4.0).expand(4, 4)  # 0 1 2 3 in every row


@pytest.mark.parametrize(
    ("box", "flip", "grid", "expected"),
    [
        # the map 0..3 / 4..7 / 8..11 / 12..15 is linear, so a cell inside gets the value at its
        # centre: the four cells in the centre, plain and flipped
        ((0.25, 0.25, 0.5, 0.5), False, (2, 2), [[5, 6], [9, 10]]),
        ((0.25, 0.25, 0.5, 0.5), True, (2, 2), [[6, 5], [10, 9]]),
        # half a cell to the right
        ((0.25, 0.375, 0.5, 0.25), False, (2, 1), [[5.5], [9.5]]),
        # the right half: beyond the outermost centres the map is constant, so the last column is
        # the mean of 2.625 2.875 3 3, 2.875; the first row .125 (0 0 .125 .375), the last 2.875
        (
            (0, 0.5, 1, 0.5),
            True,
            (4, 2),
            [[3.375, 2.5], [6.875, 6], [10.875, 10], [14.375, 13.5]],
        ),
    ],
)
def test_crops_by_hand(box, flip, grid, expected):
    held = in_memory(torch.arange(16.0).view(4, 4))
    result = held.crop(torch.tensor([0]), torch.tensor([box]), torch.tensor([flip]), grid)
    torch.testing.assert_close(result[0], torch.tensor(expected, dtype=torch.float32))


def _average(maps: torch.Tensor, box: list[float], u: int, v: int, grid: tuple[int, int]) -> float:
    """The mean of a map of constant cells under one cell of a view, by many samples."""
    y, x, h, w = box
    many = 24
    total = 0.0
    for i, j in itertools.product(range(many), range(many)):
        row = (y + h * (u + (i + 0.5) / many) / grid[0]) * maps.shape[0]
        column = (x + w * (v + (j + 0.5) / many) / grid[1]) * maps.shape[1]
        total += float(maps[min(int(row), len(maps) - 1), min(int(column), maps.shape[1] - 1)])
    return total / many**2


BOXES = [[0.1, 0.2, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0], [0.45, 0.3, 0.4, 0.3]]


def _bilinear(maps: torch.Tensor, y: float, x: float) -> float:
    """Bilinear interpolation between the centres of cells; constant beyond the outermost ones."""
    y = min(max(y - 0.5, 0.0), maps.shape[0] - 1.0)
    x = min(max(x - 0.5, 0.0), maps.shape[1] - 1.0)
    top, left = int(y), int(x)
    bottom, far = min(top + 1, maps.shape[0] - 1), min(left + 1, maps.shape[1] - 1)
    down, right = y - top, x - left
    above = (1 - down) * (1 - right) * maps[top, left] + (1 - down) * right * maps[top, far]
    return float(above + down * (1 - right) * maps[bottom, left] + down * right * maps[bottom, far])


def _slow(maps: torch.Tensor, box: list[float], grid: tuple[int, int], margin: int = 0):
    """Slow reference: one map (Us,Vs), cropped; each cell is the mean of 4x4 samples."""
    rows, columns = (range(-margin, n + margin) for n in grid)
    result = torch.zeros(len(rows), len(columns))
    for u, v, i, j in itertools.product(rows, columns, range(4), range(4)):
        y = (box[0] + box[2] * (u + (i + 0.5) / 4) / grid[0]) * maps.shape[0]
        x = (box[1] + box[3] * (v + (j + 0.5) / 4) / grid[1]) * maps.shape[1]
        result[u + margin, v + margin] += _bilinear(maps, y, x) / 16
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", BOXES)
def test_a_cell_is_the_mean_of_sixteen_bilinear_reads(generator, box, flip):
    maps = torch.rand(6, 5, generator=generator).half().float()
    result = in_memory(maps).crop(
        torch.tensor([0]), torch.tensor([box]), torch.tensor([flip]), (3, 4)
    )[0]
    expected = _slow(maps, box, (3, 4))
    torch.testing.assert_close(result, expected.flip(1) if flip else expected, atol=1e-5, rtol=0)


def test_the_right_half_of_a_ramp_flipped_by_hand():
    # columns 0 1 2 3 with centres at 0.5 1.5 2.5 3.5; the right half is sampled at
    # x = 2.125 2.375 2.625 2.875 -> 1.625 1.875 2.125 2.375, mean 2
    # x = 3.125 3.375 3.625 3.875 -> 2.625 2.875 3 3 (nothing beyond 3.5), mean 2.875
    result = in_memory(RAMP).crop(
        torch.tensor([0]), torch.tensor([[0, 0.5, 1, 0.5]]), torch.tensor([True]), (4, 2)
    )[0]
    torch.testing.assert_close(result, torch.tensor([[2.875, 2.0]]).expand(4, 2))


@pytest.mark.parametrize("box", [*BOXES, [0.5, 0.5, 0.5, 0.5], [0.0, 0.4, 0.3, 0.6]])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_of_a_smooth_map_follow_their_box(box, flip):
    rows = torch.arange(16.0)
    maps = rows[:, None] + 0.5 * rows
    result = in_memory(maps).crop(
        torch.tensor([0]), torch.tensor([box]), torch.tensor([flip]), (3, 4)
    )[0]
    expected = torch.tensor(
        [[_average(maps, box, u, v, (3, 4)) for v in range(4)] for u in range(3)]
    )
    torch.testing.assert_close(result, expected.flip(1) if flip else expected, atol=0.3, rtol=0)


def test_flips_and_ids_belong_to_their_sample():
    maps = torch.stack([RAMP, 10 + RAMP, 20 + RAMP]).half()
    held = SaliencyStore({}, {64: maps})
    result = held.crop(
        torch.tensor([2, 0, 1]),
        WHOLE.expand(3, 4),
        torch.tensor([True, False, False]),
        (4, 4),
    )
    torch.testing.assert_close(result.mean((1, 2)), torch.tensor([21.5, 1.5, 11.5]))
    slope = (result[..., -1] - result[..., 0]).mean(1)
    assert slope[0] < -2 and slope[1] > 2 and slope[2] > 2


@given(st.integers(0, 100))
def test_a_crop_does_not_depend_on_its_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = {level: torch.rand(5, *g, generator=generator).half() for level, g in GRIDS.items()}
    held = SaliencyStore({}, maps)
    size = 0.3 + 0.7 * torch.rand(5, 2, generator=generator)
    boxes = torch.cat([torch.rand(5, 2, generator=generator) * (1 - size), size], 1)
    flips = torch.rand(5, generator=generator) < 0.5
    order = torch.randperm(5, generator=generator)
    together = held.crop(torch.arange(5), boxes, flips, (3, 3))
    apart = held.crop(order[:2], boxes[order[:2]], flips[order[:2]], (3, 3))
    torch.testing.assert_close(apart, together[order[:2]])


# ------------------------------------------------------------------------------------- margin


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # 0 1 2 3 with centres at 0.5 1.5 2.5 3.5, cropped to 1..3: two cells get the values at
        # their centres; the cell before is sampled at 0.125 0.375 0.625 0.875 -> 0 0 .125 .375,
        # mean .125, and the cell behind has 3 - .125
        ((0.25, 0.25, 0.5, 0.5), [0.125, 1, 2, 2.875]),
        # not cropped: the first cell is sampled at .25 .75 1.25 1.75 -> 0 .25 .75 1.25, mean .5625;
        # cells outside the image repeat its border
        ((0.0, 0.0, 1.0, 1.0), [0, 0.5625, 2.4375, 3]),
    ],
)
def test_the_margin_shows_the_image_and_then_repeats_its_border(box, expected):
    result = crops.resample(RAMP[None], torch.tensor([box]), (2, 2), margin=1)[0]
    torch.testing.assert_close(result, torch.tensor(expected).expand(4, 4))
    across = crops.resample(RAMP.T[None].contiguous(), torch.tensor([box]), (2, 2), margin=1)[0]
    torch.testing.assert_close(across, torch.tensor(expected)[:, None].expand(4, 4))


SIDES = st.integers(1, 7)


@st.composite
def _views(draw):
    """Two maps of one size, a box each, and a grid."""
    high, wide = draw(SIDES), draw(SIDES)
    maps = torch.rand(2, high, wide, generator=torch.Generator().manual_seed(draw(SIDES)))
    boxes = []
    for _ in range(2):
        h, w = draw(st.floats(0.05, 1)), draw(st.floats(0.05, 1))
        boxes.append([draw(st.floats(0, 1)) * (1 - h), draw(st.floats(0, 1)) * (1 - w), h, w])
    return maps, torch.tensor(boxes), (draw(SIDES), draw(SIDES))


@given(_views(), st.integers(0, 2))
def test_crops_of_any_map_are_means_of_bilinear_reads(views, margin):
    maps, boxes, grid = views
    result = crops.resample(maps, boxes, grid, margin)
    expected = [_slow(maps[i], boxes[i].tolist(), grid, margin) for i in range(2)]
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-4, rtol=0)


@given(_views())
def test_a_margin_leaves_the_inside_as_it_is(views):
    maps, boxes, grid = views
    result = crops.resample(maps, boxes, grid, margin=1)
    assert result.shape == (2, grid[0] + 2, grid[1] + 2)
    plain = crops.resample(maps, boxes, grid)
    torch.testing.assert_close(result[:, 1:-1, 1:-1], plain, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------- levels


@given(
    st.lists(st.integers(32, 1024), min_size=1, max_size=5, unique=True),
    st.lists(st.floats(1, 20), min_size=1, max_size=10),
)
def test_level_weights_sum_to_one_on_neighbouring_levels(levels, zooms):
    weights = crops.level_weights(sorted(levels), torch.tensor(zooms))
    torch.testing.assert_close(weights.sum(0), torch.ones(len(zooms)))
    assert (weights > -1e-6).all()
    for column in weights.T:
        used = (column > 1e-6).nonzero().flatten()
        assert used[-1] - used[0] <= 1


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (1.0, [1, 0, 0]),  # the whole image
        (0.5, [0, 1, 0]),  # half the side: twice the resolution
        (0.25, [0, 0, 1]),
        (0.1, [0, 0, 1]),  # the last level is the finest
        (2**-0.5, [0.5, 0.5, 0]),  # half way between two levels in the logarithm
        (2**-1.75, [0, 0.25, 0.75]),
    ],
)
def test_the_level_follows_the_zoom(side, expected):
    held = in_memory(*(torch.full((n, n), float(v)) for n, v in ((2, 1), (4, 10), (8, 100))))
    box = torch.tensor([[0.0, 0.0, side, side]])
    result = held.crop(torch.tensor([0]), box, UNFLIPPED, (2, 2))
    value = expected[0] * 1 + expected[1] * 10 + expected[2] * 100
    torch.testing.assert_close(result, torch.full((1, 2, 2), float(value)), rtol=1e-4, atol=1e-4)


def test_an_oblong_box_zooms_by_its_area():
    # 0.5 wide and high by 1: sqrt(2) times, half way between the levels
    held = in_memory(torch.full((2, 2), 1.0), torch.full((4, 4), 2.0))
    result = held.crop(torch.tensor([0]), torch.tensor([[0.0, 0, 1, 0.5]]), UNFLIPPED, (2, 2))
    torch.testing.assert_close(result, torch.full((1, 2, 2), 1.5))


def test_zooms_by_hand():
    # boxes of the area 1, 1/4 (oblong) and 1/9: zooms 1, 1 / sqrt(1/4) and 1 / sqrt(1/9)
    boxes = torch.tensor([[0, 0, 1, 1], [0.1, 0, 0.25, 1], [0.5, 0.5, 1 / 3, 1 / 3]])
    torch.testing.assert_close(crops.zoom_of(boxes), torch.tensor([1.0, 2, 3]))


def test_levels_are_blended_by_zoom_whatever_their_order():
    # 2**0.5 is half way from 64 to 128; 4 is above the last level
    values = {128: torch.full((3, 1, 2), 10.0), 64: torch.full((3, 1, 2), 1.0)}
    result = crops.blend(values, torch.tensor([1, 2**0.5, 4]))
    torch.testing.assert_close(result, torch.tensor([1, 5.5, 10])[:, None, None].expand(3, 1, 2))
