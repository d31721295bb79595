import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.errors import UserError
from salmask.provenance import tree_digest
from salmask.saliency import store
from salmask.saliency.scda import foreground
from salmask.saliency.store import Plan, SaliencyStore

ROWS, SHARD = 10, 4  # shards of 4, 4 and 2
GRIDS = {64: (2, 2), 128: (4, 3)}
PLAN = Plan(ROWS, SHARD, GRIDS, {"manifest": "m" * 64, "localizer": {"name": "toy"}})
MAPS = {
    level: torch.rand(ROWS, *grid, generator=torch.Generator().manual_seed(level)) * 1000
    for level, grid in GRIDS.items()
}
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
UNFLIPPED = torch.tensor([False])


def compute(rows: range) -> dict[int, torch.Tensor]:
    return {level: maps[rows.start : rows.stop] for level, maps in MAPS.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saliency" / "saliency.zarr"


@pytest.fixture
def filled(path):
    store.fill(path, PLAN, compute)
    return path


def in_memory(*maps: torch.Tensor) -> SaliencyStore:
    """A store of one image with a map per level; levels 64, 128, ..."""
    return SaliencyStore({}, {64 * 2**i: m[None].half() for i, m in enumerate(maps)})


# ------------------------------------------------------------------------------------- on disk


def test_what_is_written_is_read_divided_by_its_mean(filled):
    held = SaliencyStore.open(filled, "m" * 64)
    assert held.levels == [64, 128]
    ids = torch.tensor([7, 0, 9])
    for level, maps in MAPS.items():
        wanted = maps[ids] / maps[ids].mean((1, 2), keepdim=True)
        found = held.activation(ids, level)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, atol=0, rtol=2**-11)  # half of float16's step
        torch.testing.assert_close(found.mean((1, 2)), torch.ones(3), atol=1e-3, rtol=0)


def test_the_means_that_were_divided_out_are_kept(filled):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(filled, mode="r")
    for level, maps in MAPS.items():
        kept = torch.from_numpy(group[f"mean/{level}"][:])
        torch.testing.assert_close(kept, maps.mean((1, 2)))
        assert group[f"activation/{level}"].dtype == "float16"
        assert group[f"activation/{level}"].chunks == (SHARD, *GRIDS[level])


def test_sums_beyond_float16_survive(path):
    plan = Plan(1, 1, {64: (2, 2)}, PLAN.attributes)
    raw = torch.tensor([[[1e6, 2e6], [3e6, 6e6]]])
    store.fill(path, plan, lambda rows: {64: raw})
    found = SaliencyStore.open(path).activation(torch.tensor([0]), 64)
    torch.testing.assert_close(found, raw / 3e6, atol=0, rtol=2**-11)


def test_an_all_zero_map_stays_zero(path):
    plan = Plan(2, 2, {64: (2, 2)}, PLAN.attributes)
    store.fill(path, plan, lambda rows: {64: torch.stack([torch.zeros(2, 2), torch.eye(2)])})
    found = SaliencyStore.open(path).activation(torch.arange(2), 64)
    assert torch.equal(found, torch.stack([torch.zeros(2, 2), 2 * torch.eye(2)]))
    assert foreground(found)[0].all()


@pytest.mark.parametrize("values", [[-4.0, -2.0, -1.0, -1.0], [-3.0, 1.0, 1.0, -1.0]])
def test_a_map_of_negative_mean_keeps_its_foreground(path, values):
    raw = torch.tensor(values).view(1, 2, 2)
    store.fill(path, Plan(1, 1, {64: (2, 2)}, PLAN.attributes), lambda rows: {64: raw})
    found = SaliencyStore.open(path).activation(torch.tensor([0]), 64)
    assert torch.equal(foreground(found), foreground(raw))


def test_a_map_whose_parts_cancel_stays_finite(path):
    raw = torch.tensor([[[-1.0, 1.0], [-1.0, 1.00001]]])
    store.fill(path, Plan(1, 1, {64: (2, 2)}, PLAN.attributes), lambda rows: {64: raw})
    assert SaliencyStore.open(path).activation(torch.tensor([0]), 64).isfinite().all()


def test_rewriting_gives_the_same_bytes(tmp_path):
    digests = set()
    for name in ("a", "b"):
        folder = tmp_path / name
        store.fill(folder / "saliency.zarr", PLAN, compute)
        digests.add(tree_digest(folder))
        store.fill(folder / "saliency.zarr", PLAN, compute)
        digests.add(tree_digest(folder))
    assert len(digests) == 1


@given(st.integers(1, 60), st.integers(1, 20))
def test_shards_share_the_rows_without_overlap(rows, shard_rows):
    plan = Plan(rows, shard_rows, GRIDS, {})
    covered = [row for index in range(plan.shards) for row in plan.shard(index)]
    assert covered == list(range(rows))
    assert all(0 < len(plan.shard(i)) <= shard_rows for i in range(plan.shards))


class KilledError(Exception):
    """Stands for a kill in the middle of the work."""


def test_a_kill_between_shards_loses_only_the_shard_in_work(path, tmp_path):
    asked = []

    def dies(rows: range) -> dict[int, torch.Tensor]:
        asked.append(rows)
        if rows.start == 4:
            raise KilledError
        return compute(rows)

    with pytest.raises(KilledError):
        store.fill(path, PLAN, dies)
    assert store.done_shards(path, PLAN) == {0}

    def counted(rows: range) -> dict[int, torch.Tensor]:
        asked.append(rows)
        return compute(rows)

    store.fill(path, PLAN, counted)
    assert asked == [range(0, 4), range(4, 8), range(4, 8), range(8, 10)]
    whole = tmp_path / "whole" / "saliency.zarr"
    store.fill(whole, PLAN, compute)
    assert tree_digest(path.parent) == tree_digest(whole.parent)


def test_a_kill_between_data_and_done_mark_redoes_the_shard(path, monkeypatch):
    store.create(path, PLAN)

    def killed(*ignored) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_json", killed)
        with pytest.raises(KilledError):
            store.write_shard(path, PLAN, 0, compute(PLAN.shard(0)))
    assert store.done_shards(path, PLAN) == set()


@pytest.mark.parametrize("damage", ["changed byte", "missing chunk"])
def test_a_done_shard_whose_data_changed_is_done_again(filled, damage):
    before = tree_digest(filled.parent)
    chunk = filled / "activation" / "128" / "c" / "1" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    if damage == "missing chunk":
        chunk.unlink()
    else:
        content[-1] ^= 1
        chunk.write_bytes(bytes(content))
    assert store.done_shards(filled, PLAN) == {0, 2}
    asked = []
    store.fill(filled, PLAN, lambda rows: asked.append(rows) or compute(rows))
    assert asked == [range(4, 8)]
    assert tree_digest(filled.parent) == before


def test_done_marks_tell_their_shard(filled):
    marks = sorted((filled.parent / "shards").iterdir())
    assert [json.loads(mark.read_text())["shard"] for mark in marks] == [0, 1, 2]


def test_a_missing_shard_is_refused_with_the_number_of_rows(path):
    store.create(path, PLAN)
    for index in (0, 2):
        store.write_shard(path, PLAN, index, compute(PLAN.shard(index)))
    with pytest.raises(UserError, match=r"4 rows of level 64 are missing.*--force saliency"):
        SaliencyStore.open(path)


def test_rows_that_are_not_numbers_are_refused(path):
    maps = {level: m.clone() for level, m in MAPS.items()}
    maps[128][3, 0, 0] = math.nan
    store.fill(path, PLAN, lambda rows: {k: m[rows.start : rows.stop] for k, m in maps.items()})
    with pytest.raises(UserError, match=r"1 rows of level 128 are missing"):
        SaliencyStore.open(path)


def test_a_store_of_other_images_is_refused(filled):
    with pytest.raises(UserError, match=r"another set of images .*mmmm.*yours is nnnn"):
        SaliencyStore.open(filled, "n" * 64)


def test_a_missing_store_says_what_to_run(path):
    with pytest.raises(UserError, match="dvc repro saliency"):
        SaliencyStore.open(path)


def test_another_schema_is_refused(filled):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(filled, mode="r+").attrs["schema"] = "salmask.saliency/0"
    with pytest.raises(UserError, match=r"schema salmask\.saliency/0, not salmask\.saliency/1"):
        SaliencyStore.open(filled)


@pytest.mark.parametrize(
    "other",
    [
        Plan(ROWS, SHARD, GRIDS, {"manifest": "n" * 64, "localizer": {"name": "toy"}}),
        Plan(ROWS, SHARD + 1, GRIDS, PLAN.attributes),
        Plan(ROWS + 1, SHARD, GRIDS, PLAN.attributes),
        Plan(ROWS, SHARD, {64: (2, 2)}, PLAN.attributes),
    ],
    ids=["manifest", "shard_rows", "rows", "levels"],
)
def test_a_store_is_never_filled_by_another_plan(filled, other):
    before = tree_digest(filled.parent)
    with pytest.raises(UserError, match="another store; remove the folder"):
        store.fill(filled, other, compute)
    assert tree_digest(filled.parent) == before


# ------------------------------------------------------------------------------------- crops

RAMP = torch.arange(4.0).expand(4, 4)  # 0 1 2 3 in every row


@pytest.mark.parametrize(
    ("box", "flip", "grid", "wanted"),
    [
        # 0..3 / 4..7 / 8..11 / 12..15 rises evenly, so a cell inside reads its own middle:
        # the four cells in the centre, plain and flipped
        ((0.25, 0.25, 0.5, 0.5), False, (2, 2), [[5, 6], [9, 10]]),
        ((0.25, 0.25, 0.5, 0.5), True, (2, 2), [[6, 5], [10, 9]]),
        # half a cell to the right
        ((0.25, 0.375, 0.5, 0.25), False, (2, 1), [[5.5], [9.5]]),
        # the right half: past the outermost centres the map stays level, so the last column
        # reads 2.625 2.875 3 3 = 2.875, the first row 0 0 .125 .375 = .125, the last 2.875
        (
            (0, 0.5, 1, 0.5),
            True,
            (4, 2),
            [[3.375, 2.5], [6.875, 6], [10.875, 10], [14.375, 13.5]],
        ),
    ],
)
def test_crops_by_hand(box, flip, grid, wanted):
    held = in_memory(torch.arange(16.0).view(4, 4))
    found = held.crop(torch.tensor([0]), torch.tensor([box]), torch.tensor([flip]), grid)
    torch.testing.assert_close(found[0], torch.tensor(wanted, dtype=torch.float32))


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
    """A map between the centres of its cells; beyond the outermost centres it stays level."""
    y = min(max(y - 0.5, 0.0), maps.shape[0] - 1.0)
    x = min(max(x - 0.5, 0.0), maps.shape[1] - 1.0)
    top, left = min(int(y), maps.shape[0] - 2), min(int(x), maps.shape[1] - 2)
    down, right = y - top, x - left
    (a, b), (c, d) = maps[top : top + 2, left : left + 2].tolist()
    return (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", BOXES)
def test_a_cell_is_the_mean_of_sixteen_bilinear_reads(generator, box, flip):
    maps = torch.rand(6, 5, generator=generator).half().float()
    found = in_memory(maps).crop(
        torch.tensor([0]), torch.tensor([box]), torch.tensor([flip]), (3, 4)
    )[0]
    wanted = torch.zeros(3, 4)
    for u, v, i, j in itertools.product(range(3), range(4), range(4), range(4)):
        y = (box[0] + box[2] * (u + (i + 0.5) / 4) / 3) * 6
        x = (box[1] + box[3] * (v + (j + 0.5) / 4) / 4) * 5
        wanted[u, v] += _bilinear(maps, y, x) / 16
    torch.testing.assert_close(found, wanted.flip(1) if flip else wanted, atol=1e-5, rtol=0)


def test_the_right_half_of_a_ramp_flipped_by_hand():
    # columns 0 1 2 3 with centres at 0.5 1.5 2.5 3.5; the right half is read at
    # x = 2.125 2.375 2.625 2.875 -> 1.625 1.875 2.125 2.375, mean 2
    # x = 3.125 3.375 3.625 3.875 -> 2.625 2.875 3 3 (nothing beyond 3.5), mean 2.875
    found = in_memory(RAMP).crop(
        torch.tensor([0]), torch.tensor([[0, 0.5, 1, 0.5]]), torch.tensor([True]), (4, 2)
    )[0]
    torch.testing.assert_close(found, torch.tensor([[2.875, 2.0]]).expand(4, 2))


@pytest.mark.parametrize("box", [*BOXES, [0.5, 0.5, 0.5, 0.5], [0.0, 0.4, 0.3, 0.6]])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_of_a_smooth_map_follow_their_box(box, flip):
    rows = torch.arange(16.0)
    maps = rows[:, None] + 0.5 * rows
    found = in_memory(maps).crop(
        torch.tensor([0]), torch.tensor([box]), torch.tensor([flip]), (3, 4)
    )[0]
    wanted = torch.tensor([[_average(maps, box, u, v, (3, 4)) for v in range(4)] for u in range(3)])
    torch.testing.assert_close(found, wanted.flip(1) if flip else wanted, atol=0.3, rtol=0)


def test_flips_and_ids_belong_to_their_sample():
    maps = torch.stack([RAMP, 10 + RAMP, 20 + RAMP]).half()
    held = SaliencyStore({}, {64: maps})
    found = held.crop(
        torch.tensor([2, 0, 1]),
        WHOLE.expand(3, 4),
        torch.tensor([True, False, False]),
        (4, 4),
    )
    torch.testing.assert_close(found.mean((1, 2)), torch.tensor([21.5, 1.5, 11.5]))
    slope = (found[..., -1] - found[..., 0]).mean(1)
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


# ------------------------------------------------------------------------------------- levels


@given(
    st.lists(st.integers(32, 1024), min_size=1, max_size=5, unique=True),
    st.lists(st.floats(1, 20), min_size=1, max_size=10),
)
def test_level_weights_sum_to_one_on_neighbouring_levels(levels, zooms):
    weights = store._level_weights(sorted(levels), torch.tensor(zooms))
    torch.testing.assert_close(weights.sum(0), torch.ones(len(zooms)))
    assert (weights > -1e-6).all()
    for column in weights.T:
        used = (column > 1e-6).nonzero().flatten()
        assert used[-1] - used[0] <= 1


@pytest.mark.parametrize(
    ("side", "wanted"),
    [
        (1.0, [1, 0, 0]),  # the whole image
        (0.5, [0, 1, 0]),  # half the side: twice the resolution
        (0.25, [0, 0, 1]),
        (0.1, [0, 0, 1]),  # nothing finer than the last
        (2**-0.5, [0.5, 0.5, 0]),  # half way between two levels in the logarithm
        (2**-1.75, [0, 0.25, 0.75]),
    ],
)
def test_the_level_follows_the_zoom(side, wanted):
    held = in_memory(*(torch.full((n, n), float(v)) for n, v in ((2, 1), (4, 10), (8, 100))))
    box = torch.tensor([[0.0, 0.0, side, side]])
    found = held.crop(torch.tensor([0]), box, UNFLIPPED, (2, 2))
    value = wanted[0] * 1 + wanted[1] * 10 + wanted[2] * 100
    torch.testing.assert_close(found, torch.full((1, 2, 2), float(value)), rtol=1e-4, atol=1e-4)


def test_an_oblong_box_zooms_by_its_area():
    # 0.5 wide and high by 1: sqrt(2) times, half way between the levels
    held = in_memory(torch.full((2, 2), 1.0), torch.full((4, 4), 2.0))
    found = held.crop(torch.tensor([0]), torch.tensor([[0.0, 0, 1, 0.5]]), UNFLIPPED, (2, 2))
    torch.testing.assert_close(found, torch.full((1, 2, 2), 1.5))
