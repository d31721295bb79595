"""Saliency-guided masks: masked patches, masked views, and fills."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmask.errors import UserError
from salmask.masks.options import function_of, reads_saliency
from salmask.params.values import Choice
from salmask.shapes import Pair
from tests.helpers.mask_scenes import (
    apply,
    as_pixels,
    blurred,
    correlation,
    filling,
    masked_cells,
    rounded,
    salient,
    scene,
    shared_cells,
)

SIDE, GRID, BATCH = 64, 8, 12
CELLS = GRID * GRID
FILLS = ["blur", "mean"]
GUIDED = ["blur", "mean", "high_pass"]
RULES = ["balanced", "salient", "random"]
BRANCHES = ["query", "key", "both"]


@pytest.fixture
def pair() -> Pair:
    return scene(BATCH, SIDE, GRID)


def flat(batch: int, side: int = 16, grid: int = 4) -> Pair:
    """Views whose maps are constant: all foreground, so that counts show the ratio."""
    noise, ones = scene(batch, side, grid), torch.ones(batch, grid, grid)
    return Pair(noise.query, noise.key, ones, ones)


def counts(before: Tensor, after: Tensor, grid: int = 4) -> Tensor:
    """The number of patches that differ: (B,)."""
    return shared_cells(before, after, grid).sum((1, 2))


def follows_rule(mask: Tensor, foreground: Tensor, rule: str, ratio: float) -> bool:
    """Whether the patches (U,V) bool of an image follow the rule of a positive."""
    total, available = mask.numel(), int(foreground.sum())
    inside = int((mask & foreground).sum())
    outside = int((mask & ~foreground).sum())
    if rule == "random":
        return rounded(inside + outside, ratio * total)
    if rule == "salient":
        clamped = inside == available and ratio * total >= available - 0.5
        return outside == 0 and (clamped or rounded(inside, ratio * total))
    return rounded(inside, ratio * available) and rounded(inside + outside, ratio * total)


# -------------------------------------------------------------------- the rule of positives


@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(FILLS),
    rule=st.sampled_from(RULES),
    branch=st.sampled_from(BRANCHES),
    ratio=st.floats(0, 1, width=32),
    beta=st.floats(0, 1, width=32),
    count=st.integers(0, 3),
)
def test_every_view_is_masked_by_its_rule(
    seed: int, name: str, rule: str, branch: str, ratio: float, beta: float, count: int
) -> None:
    pair = scene(3, 16, 4, seed=seed)
    if seed % 3 == 0:
        pair = Pair(pair.query, pair.key, pair.query_activation, torch.ones(3, 4, 4))
    hard = {"ratio": (beta, beta), "count": count} if count and rule != "random" else None
    made = apply(name, pair, 4, where=rule, masked=branch, ratio=(ratio, ratio), hard_negative=hard)
    where = {"query": salient(pair.query_activation), "key": salient(pair.key_activation)}
    for view in ("query", "key"):
        before, after = getattr(pair, view), getattr(made, view)
        if branch not in (view, "both"):
            assert after is before
            continue
        for mask, foreground in zip(shared_cells(before, after, 4), where[view], strict=True):
            assert follows_rule(mask, foreground, rule, ratio)
    assert len(made.negatives) == (count if hard else 0)
    for negative in made.negatives:
        cells = shared_cells(pair.key, negative, 4)
        for mask, foreground in zip(cells, where["key"], strict=True):
            assert not (mask & ~foreground).any()
            assert rounded(mask.sum(), beta * int(foreground.sum()))
    assert made.extra == () and made.mixed == ()


# ------------------------------------------------------------------------------------ where


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ratio", [0.15, 0.25, 0.5])
def test_the_query_is_masked_and_filled(pair: Pair, name: str, rule: str, ratio: float) -> None:
    made = apply(name, pair, GRID, ratio=(ratio, ratio), where=rule, hard_negative=None)
    assert made.key is pair.key and made.negatives == ()
    cells = shared_cells(pair.query, made.query, GRID)
    for mask, foreground in zip(cells, salient(pair.query_activation), strict=True):
        assert follows_rule(mask, foreground, rule, ratio)
    pixels = as_pixels(cells, SIDE)[:, None]
    expected = torch.where(pixels, filling(name, pair.query), pair.query)
    torch.testing.assert_close(made.query, expected, atol=1e-5, rtol=1e-5)


def test_balanced_counts_by_hand() -> None:
    # 20 cells of 1, 44 of 0: mean .3125, deviation .4635, threshold of Eq. 1 .0344: 20 in the
    # foreground
    maps = (torch.arange(64) < 20).float().view(1, 8, 8)
    view = scene(1, SIDE, GRID).query
    made = apply("mean", Pair(view, view, maps, maps), GRID, ratio=(0.15, 0.15), hard_negative=None)
    mask = shared_cells(view, made.query, GRID)
    # round(.15 * 20) = 3 inside; round(.15 * 64 = 9.6) = 10, less 3, outside
    assert (mask & (maps > 0)).sum() == 3
    assert (mask & (maps == 0)).sum() == 7


@pytest.mark.parametrize(("ratio", "expected"), [(0.15, 10), (0.3, 19), (0.32, 20), (0.9, 20)])
def test_salient_takes_the_same_area_from_the_foreground_and_no_more(
    ratio: float, expected: int
) -> None:
    # 20 cells of foreground as above: 9.6 -> 10, 19.2 -> 19, 20.5 and 57.6 are more than there are
    maps = (torch.arange(64) < 20).float().view(1, 8, 8)
    view = scene(1, SIDE, GRID).query
    options: dict[str, Any] = {"where": "salient", "ratio": (ratio, ratio), "hard_negative": None}
    made = apply("blur", Pair(view, view, maps, maps), GRID, **options)
    mask = shared_cells(view, made.query, GRID)
    assert mask.sum() == expected
    assert not (mask & (maps == 0)).any()


def test_salient_masks_as_much_as_balanced_where_there_is_foreground() -> None:
    """The two rules differ in the place of the patches, not in their number."""
    pair = scene(40, 32, 8)
    options: dict[str, Any] = {"ratio": (0.05, 0.25), "hard_negative": None}
    areas = [
        counts(pair.query, apply("mean", pair, 8, where=rule, **options).query, 8)
        for rule in ("balanced", "salient")
    ]
    assert torch.equal(*areas)


def test_random_patches_do_not_depend_on_the_map() -> None:
    pair = scene(150, 32, 8)
    blind = Pair(pair.query, pair.key)
    options: dict[str, Any] = {"where": "random", "ratio": (0.25, 0.25), "hard_negative": None}
    made = apply("mean", pair, 8, **options)
    assert torch.equal(made.query, apply("mean", blind, 8, **options).query)
    mask, foreground = shared_cells(pair.query, made.query, 8), salient(pair.query_activation)
    inside = mask[foreground].float().mean().item()
    outside = mask[~foreground].float().mean().item()
    # about 4000 and 5000 cells: the deviation of a share is 0.007
    assert inside == pytest.approx(0.25, abs=0.03)
    assert outside == pytest.approx(0.25, abs=0.03)


def test_the_threshold_moves_the_foreground(pair: Pair) -> None:
    """With the threshold 0, the foreground is every cell of at least the mean."""
    options: dict[str, Any] = {"where": "salient", "ratio": (1, 1), "hard_negative": None}
    made = apply("mean", pair, GRID, threshold=0.0, **options)
    maps = pair.query_activation.double()
    above = maps >= maps.mean((1, 2), keepdim=True)
    assert torch.equal(shared_cells(pair.query, made.query, GRID), above)


# --------------------------------------------------------------------------------- branches


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("branch", BRANCHES)
def test_only_the_chosen_branches_are_masked(pair: Pair, name: str, branch: str) -> None:
    options = {"focal": 0.0, "channel": 0.0} if name == "high_pass" else {}
    made = apply(name, pair, GRID, masked=branch, ratio=(0.25, 0.25), **options)
    unmasked = apply(name, pair, GRID, ratio=(0, 0), **options)
    for view in ("query", "key"):
        cells = shared_cells(getattr(unmasked, view), getattr(made, view), GRID, 1e-4)
        expected = 16 if branch in (view, "both") else 0
        assert torch.equal(cells.sum((1, 2)), torch.full((BATCH,), expected))


def test_both_branches_are_drawn_independently() -> None:
    """Ratio and patches differ, even where both views have the same map."""
    pair = flat(600)
    made = apply("mean", pair, 4, masked="both", ratio=(0, 1), hard_negative=None)
    query, key = (
        shared_cells(before, after, 4)
        for before, after in ((pair.query, made.query), (pair.key, made.key))
    )
    # 600 pairs of independent numbers: the deviation of their correlation is 0.04
    assert abs(correlation(query.sum((1, 2)), key.sum((1, 2)))) < 0.16
    made = apply("mean", pair, 4, masked="both", ratio=(0.5, 0.5), hard_negative=None)
    query, key = (
        shared_cells(before, after, 4).float()
        for before, after in ((pair.query, made.query), (pair.key, made.key))
    )
    assert (query * key).mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", FILLS)
def test_the_hard_negative_is_cut_from_the_unmasked_key(pair: Pair, name: str, branch: str) -> None:
    hard = {"ratio": (0.5, 0.5), "count": 2}
    made = apply(name, pair, GRID, masked=branch, ratio=(0.9, 0.9), hard_negative=hard)
    assert len(made.negatives) == 2
    for negative in made.negatives:
        cells = shared_cells(pair.key, negative, GRID)
        for mask, foreground in zip(cells, salient(pair.key_activation), strict=True):
            assert not (mask & ~foreground).any()
            assert rounded(mask.sum(), 0.5 * int(foreground.sum()))
        pixels = as_pixels(cells, SIDE)[:, None]
        expected = torch.where(pixels, filling(name, pair.key), pair.key)
        torch.testing.assert_close(negative, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------- hard negatives


@pytest.mark.parametrize("name", GUIDED)
def test_the_hard_negative_can_be_switched_off(pair: Pair, name: str) -> None:
    """The positives stay the same, so that the ablation changes the hard negatives only."""
    with_it = apply(name, pair, GRID)
    without = apply(name, pair, GRID, hard_negative=None)
    assert len(with_it.negatives) == 1 and without.negatives == ()
    assert torch.equal(without.query, with_it.query)
    assert torch.equal(without.key, with_it.key)


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_number_of_hard_negatives(pair: Pair, name: str, count: int) -> None:
    made = apply(name, pair, GRID, hard_negative={"count": count})
    assert len(made.negatives) == count
    for n, one in enumerate(made.negatives):
        assert one.shape == pair.key.shape
        for other in made.negatives[:n]:
            assert ((one != other).flatten(1).any(1)).all()


def test_several_hard_negatives_have_ratios_and_patches_of_their_own() -> None:
    pair = flat(600)
    made = apply("mean", pair, 4, ratio=(0, 1), hard_negative={"ratio": (0, 1), "count": 3})
    areas = [counts(pair.query, made.query), *(counts(pair.key, n) for n in made.negatives)]
    for n, area in enumerate(areas):
        for other in areas[:n]:
            assert abs(correlation(area, other)) < 0.16
    made = apply("mean", pair, 4, hard_negative={"ratio": (0.5, 0.5), "count": 3})
    cells = [shared_cells(pair.key, negative, 4).float() for negative in made.negatives]
    for n, one in enumerate(cells):
        for other in cells[:n]:
            assert (one * other).mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_1_is_refused(count: int) -> None:
    with pytest.raises(UserError, match="from 1 to 64; for 0 write hard_negative: null, got"):
        function_of(Choice("blur", {"hard_negative": {"count": count}}))


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("options", [{}, {"hard_negative": {"count": 2}}])
def test_hard_negatives_without_saliency_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"runs\.a\.mask\.hard_negative: .*`where: random`.*null"):
        function_of(Choice(name, {"where": "random", **options}), "runs.a.mask")


# ----------------------------------------------------------------------------------- ratios


def test_ratios_are_drawn_evenly_between_their_bounds() -> None:
    pair = flat(1000)
    made = apply("mean", pair, 4, ratio=(0.25, 0.75), hard_negative={"ratio": (0.5, 1)})
    for before, after, low, high in (
        (pair.query, made.query, 4, 12),
        (pair.key, made.negatives[0], 8, 16),
    ):
        values = counts(before, after)
        assert values.min() == low and values.max() == high
        # counts between the bounds are equally likely, the bounds half as likely
        even = 1000 / (high - low)
        for count in range(low, high + 1):
            expected = even / 2 if count in (low, high) else even
            assert abs(int((values == count).sum()) - expected) < 4 * expected**0.5


@pytest.mark.parametrize("name", FILLS)
def test_the_published_ratios_are_the_defaults(pair: Pair, name: str) -> None:
    """Of each image, some alpha in U(.05, .25) and some beta in U(.4, .7) explains the counts."""
    made = apply(name, pair, GRID)
    query, negative = (
        shared_cells(before, after, GRID)
        for before, after in ((pair.query, made.query), (pair.key, made.negatives[0]))
    )
    steps = [n / 2000 for n in range(2001)]
    for mask, foreground in zip(query, salient(pair.query_activation), strict=True):
        assert any(follows_rule(mask, foreground, "balanced", 0.05 + 0.2 * step) for step in steps)
    for mask, foreground in zip(negative, salient(pair.key_activation), strict=True):
        available = int(foreground.sum())
        assert any(rounded(mask.sum(), (0.4 + 0.3 * step) * available) for step in steps)
    assert len(query.sum((1, 2)).unique()) > 3
    assert len(negative.sum((1, 2)).unique()) > 3


@pytest.mark.parametrize("rule", RULES)
def test_nothing_and_everything_can_be_masked(pair: Pair, rule: str) -> None:
    options: dict[str, Any] = {"where": rule, "hard_negative": None}
    assert torch.equal(apply("mean", pair, GRID, ratio=(0, 0), **options).query, pair.query)
    cells = shared_cells(pair.query, apply("mean", pair, GRID, ratio=(1, 1), **options).query, GRID)
    expected = salient(pair.query_activation) if rule == "salient" else torch.ones_like(cells)
    assert torch.equal(cells, expected)


# --------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(("side", "grid"), [(32, 4), (64, 8), (224, 7)])
@pytest.mark.parametrize("name", FILLS)
def test_pixel_constants_scale_with_the_side(name: str, side: int, grid: int) -> None:
    pair = scene(2, side, grid)
    made = apply(name, pair, grid, ratio=(1, 1), hard_negative=None)
    expected = filling(name, pair.query)
    torch.testing.assert_close(made.query, expected, atol=1e-5, rtol=1e-4)


def test_blur_takes_a_kernel_and_sigma_at_224_px(pair: Pair) -> None:
    # 52 px are 14.9 of 64, whose nearest odd number is 15; 7 px of sigma are 2
    made = apply("blur", pair, GRID, ratio=(1, 1), kernel=52, sigma=7.0, hard_negative=None)
    torch.testing.assert_close(made.query, blurred(pair.query, 15, 2.0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", GUIDED)
def test_only_a_random_mask_reads_no_saliency(pair: Pair, name: str) -> None:
    assert reads_saliency(Choice(name, {}))
    assert reads_saliency(Choice(name, {"where": "salient"}))
    blindly = {"where": "random", "hard_negative": None}
    assert not reads_saliency(Choice(name, blindly))
    blind = Pair(pair.query, pair.key)
    made = apply(name, blind, GRID, **blindly)
    assert masked_cells(pair.query, made.query, GRID).any()
    for options in ({}, {"where": "salient"}, {"masked": "key", "hard_negative": None}):
        with pytest.raises(ValueError, match="activation map"):
            apply(name, blind, GRID, **options)
