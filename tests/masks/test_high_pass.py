"""The high-pass mask: filtered views, and the kinds of noise in them (Chin et al. 2024, 3.2)."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.shapes import Pair
from tests.helpers.mask_scenes import (
    apply,
    blurred,
    cells_of,
    checkered,
    correlation,
    high_passed,
    is_noise,
    masked_cells,
    rounded,
    salient,
    scene,
    shared_cells,
    window_of,
)

SIDE, GRID, BATCH = 64, 8, 12
BRANCHES = ["query", "key", "both"]
NEAR = 1e-4  # more than rounding, less than noise


@pytest.fixture
def pair() -> Pair:
    return scene(BATCH, SIDE, GRID)


# ----------------------------------------------------------------------------------- filter


@pytest.mark.parametrize(("side", "grid"), [(32, 4), (64, 8), (224, 7)])
@pytest.mark.parametrize("branch", BRANCHES)
def test_with_ratio_zero_and_no_focal_only_the_filter_is_left(
    side: int, grid: int, branch: str
) -> None:
    pair = scene(2, side, grid)
    made = apply(
        "high_pass", pair, grid, ratio=(0, 0), focal=0.0, hard_negative=None, masked=branch
    )
    for view in ("query", "key"):
        expected = high_passed(getattr(pair, view))
        torch.testing.assert_close(getattr(made, view), expected, atol=1e-5, rtol=1e-4)
    assert made.negatives == ()


def test_all_views_are_filtered_where_they_are_not_masked(pair: Pair) -> None:
    made = apply("high_pass", pair, GRID, focal=0.0, hard_negative={"count": 2})
    torch.testing.assert_close(made.key, high_passed(pair.key), atol=1e-5, rtol=1e-5)
    for view, source in (
        (made.query, pair.query),
        *((negative, pair.key) for negative in made.negatives),
    ):
        # the noise covers at most a quarter of a view, or 0.7 of its foreground
        share = masked_cells(high_passed(source), view, GRID, NEAR).float().mean()
        assert 0.02 < share < 0.6


def test_kernel_and_sigma_are_for_224_px(pair: Pair) -> None:
    # 52 and 7 at 224 px are 15 and 2 at 64
    made = apply("high_pass", pair, GRID, kernel=52, sigma=7.0)
    expected = pair.key - blurred(pair.key, 15, 2.0)
    torch.testing.assert_close(made.key, expected, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize(
    ("options", "query", "negative"),
    [({}, 0.18, 0.14), ({"noise": 0.5, "hard_negative_noise": 0.05}, 0.5, 0.05)],
)
@pytest.mark.parametrize("focal", [0.0, 1.0])
def test_masked_pixels_are_noise_of_their_own_deviation(
    options: dict[str, float], query: float, negative: float, focal: float
) -> None:
    pair = checkered(40, 32, 4)
    made = apply("high_pass", pair, 4, focal=focal, ratio=(0.5, 0.5), masked="both", **options)
    for view, deviation in (
        (made.query, query),
        (made.key, query),
        (made.negatives[0], negative),
    ):
        grain = view[is_noise(view)]
        # more than 20000 pixels: four deviations of the estimate are below 2 percent
        assert grain.numel() > 20000
        assert grain.std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(grain.mean()) < 0.03 * deviation


def test_noise_is_drawn_per_image_channel_and_pixel(pair: Pair) -> None:
    made = apply("high_pass", pair, GRID, focal=0.0, ratio=(1, 1))  # everything masked
    flat = made.query.flatten(2).flatten(0, 1)  # (B*3, pixels)
    between = torch.corrcoef(flat) - torch.eye(len(flat))
    assert between.abs().max() < 0.1
    # no block of noise is repeated: neighbouring patches are uncorrelated
    blocks = made.query.unflatten(2, (GRID, -1)).unflatten(4, (GRID, -1))
    assert abs(correlation(blocks[:, :, :-1], blocks[:, :, 1:])) < 0.02
    assert abs(correlation(blocks[..., :-1, :], blocks[..., 1:, :])) < 0.02


def test_every_view_has_noise_of_its_own() -> None:
    pair = checkered(12, 64, 8)
    hard = {"ratio": (1, 1), "count": 2}
    made = apply("high_pass", pair, 8, focal=0.0, ratio=(1, 1), masked="both", hard_negative=hard)
    views = [made.query, made.key, *made.negatives]
    for n, view in enumerate(views):
        assert is_noise(view).all()
        for other in views[:n]:
            assert abs(correlation(view, other)) < 0.02


# ------------------------------------------------------------------------------------ kinds


@given(
    seed=st.integers(0, 10**6),
    channel=st.sampled_from([0.0, 1.0]),
    rule=st.sampled_from(["balanced", "salient"]),
    ratio=st.floats(0, 1, width=32),
    beta=st.floats(0, 1, width=32),
)
def test_every_channel_obeys_the_rule_with_one_ratio(
    seed: int, channel: float, rule: str, ratio: float, beta: float
) -> None:
    """All channels share alpha and foreground, and each has its own patches; likewise for hard
    negatives."""
    pair = scene(3, 32, 8, seed=seed)
    options: dict[str, Any] = {"where": rule, "ratio": (ratio, ratio), "channel": channel}
    options["hard_negative"] = {"ratio": (beta, beta)}
    made = apply("high_pass", pair, 8, focal=0.0, **options)
    for view, source, activation, positive in (
        (made.query, pair.query, pair.query_activation, True),
        (made.negatives[0], pair.key, pair.key_activation, False),
    ):
        cells = masked_cells(high_passed(source), view, 8, NEAR)
        for masks, foreground in zip(cells, salient(activation), strict=True):
            available = int(foreground.sum())
            for mask in masks:
                inside, total = int((mask & foreground).sum()), int(mask.sum())
                if not positive:
                    assert inside == total and rounded(inside, beta * available)
                elif rule == "salient":
                    assert inside == total
                    assert rounded(inside, min(ratio * 64, available))
                else:
                    assert rounded(inside, ratio * available) and rounded(total, ratio * 64)
            if channel == 0:
                assert torch.equal(masks, masks[:1].expand_as(masks))


def test_channels_draw_their_patches_independently() -> None:
    made = apply(
        "high_pass",
        checkered(500, 32, 4),
        4,
        focal=0.0,
        channel=1.0,
        ratio=(0, 1),
        hard_negative={"ratio": (0.5, 0.5)},
    )
    cells = cells_of(is_noise(made.query), 4).flatten(2)
    areas = cells.sum(2)
    assert torch.equal(areas, areas[:, :1].expand_as(areas))  # one alpha for all three
    assert len(areas.unique()) == 17
    cells = cells_of(is_noise(made.negatives[0]), 4).float()
    # 8 of 16 patches each: two channels share a quarter of all patches by chance
    for one, other in ((0, 1), (0, 2), (1, 2)):
        overlap = (cells[:, one] * cells[:, other]).mean().item()
        assert overlap == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize(("side", "kept", "dropped"), [(224, 200, 130), (64, 57, 37), (32, 29, 19)])
def test_focal_keeps_a_window_of_a_positive_and_drops_one_of_a_negative(
    side: int, kept: int, dropped: int
) -> None:
    """200 and 130 of 224 px are 57.1 and 37.1 of 64, 28.6 and 18.6 of 32; no saliency in either."""
    grid, batch = {224: 7, 64: 8, 32: 4}[side], 4 if side == 224 else 24
    made = apply("high_pass", checkered(batch, side, grid), grid, focal=1.0, masked="both")
    places: dict[str, set[tuple[int, int]]] = {}
    for name, area, expected in (
        ("query", ~is_noise(made.query), kept),
        ("key", ~is_noise(made.key), kept),
        ("negative", is_noise(made.negatives[0]), dropped),
    ):
        assert torch.equal(area, area[:, :1].expand_as(area))  # all channels
        values = [window_of(one[0]) for one in area]
        assert {size for *_, size in values} == {expected}
        places[name] = {(top, left) for top, left, _ in values}
        assert len(places[name]) > batch // 3
        if batch > 4:  # some windows are near each border
            starts = torch.tensor(sorted(places[name]))
            room = side - expected
            assert (starts.amin(0) <= room * 0.3).all() and (starts.amax(0) >= room * 0.7).all()
    assert places["query"] != places["key"]


def test_focal_windows_can_be_resized() -> None:
    made = apply("high_pass", checkered(4, 64, 8), 8, focal=1.0, focal_keep=112.0, focal_drop=56.0)
    for kept, dropped in zip(
        ~is_noise(made.query[:, 0]), is_noise(made.negatives[0][:, 0]), strict=True
    ):
        assert window_of(kept)[2] == 32 and window_of(dropped)[2] == 16


def test_kinds_have_the_given_probabilities() -> None:
    batch = 2000
    made = apply("high_pass", checkered(batch, 32, 4), 4, ratio=(0.25, 0.25))
    kinds = []
    for masked, drawn in (
        (is_noise(made.query), lambda share: share < 0.2),  # 29 of 32 px stay: 0.18; else 4 of 16
        (is_noise(made.negatives[0]), lambda share: (share - (19 / 32) ** 2).abs() < 1e-6),
    ):
        share = masked.float().mean((1, 2, 3))
        focal = drawn(share)
        apart = ~focal & (masked != masked[:, :1]).flatten(1).any(1)
        assert focal.float().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / batch) ** 0.5)
        values = apart.sum() / (~focal).sum()
        assert values.item() == pytest.approx(0.7, abs=4 * (0.21 / 1600) ** 0.5)
        kinds += [focal, apart]
    # the kinds of query and hard negative are independent
    assert abs(correlation(kinds[0], kinds[2])) < 0.1
    assert abs(correlation(kinds[1], kinds[3])) < 0.1


def test_a_random_mask_needs_no_map_for_any_kind() -> None:
    pair = scene(200, 32, 4)
    blind = Pair(pair.query, pair.key)
    options: dict[str, Any] = {"where": "random", "ratio": (0.25, 0.25), "hard_negative": None}
    made = apply("high_pass", blind, 4, focal=0.0, **options)
    cells = masked_cells(high_passed(pair.query), made.query, 4, NEAR)
    assert torch.equal(cells.sum((2, 3)), torch.full((200, 3), 4))
    assert (cells != cells[:, :1]).any() and (cells == cells[:, :1]).flatten(1).all(1).any()


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_hard_negative_is_cut_from_the_unmasked_filtered_key(pair: Pair, branch: str) -> None:
    hard = {"ratio": (0.5, 0.5), "count": 2}
    made = apply(
        "high_pass",
        pair,
        GRID,
        focal=0.0,
        channel=0.0,
        ratio=(1, 1),
        masked=branch,
        hard_negative=hard,
    )
    key = high_passed(pair.key)
    for negative in made.negatives:
        cells = shared_cells(key, negative, GRID, NEAR)
        for mask, foreground in zip(cells, salient(pair.key_activation), strict=True):
            assert not (mask & ~foreground).any()
            assert rounded(mask.sum(), 0.5 * int(foreground.sum()))
    # the key is noise in every patch, unless only the query is masked
    assert shared_cells(key, made.key, GRID, NEAR).all() == (branch != "query")
