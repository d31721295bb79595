"""Comparisons of masked views, and the masks that are defined for each framework."""

from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from salmask.errors import UserError
from salmask.masks import MASKS
from salmask.masks.adios import Masker
from salmask.masks.wiring import wire_mask
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.shapes import Pair, Views, Wiring
from tests.helpers.mask_scenes import apply, draws_for, high_passed, salient, scene, shared_cells

SIDE, GRID, BATCH = 64, 8, 6
VIEW = ViewConfig(size=SIDE, grid=GRID)
MOCO = Wiring("moco", "moco v2", hard_negatives=True)
MOCO_V1 = Wiring("moco", "moco v1", hard_negatives=True, published=False)
SYMMETRIC = Wiring("moco", "symmetric moco v2", roles="both", hard_negatives=True, published=False)
SIMCLR = Wiring("simclr", "simclr", roles="pairs", hard_negatives=True)
BYOL = Wiring("byol", "byol", roles="both", learned_masks="second_view")
SIMSIAM = Wiring("simsiam", "simsiam", roles="both", weight=0.5)
ALL = [MOCO, MOCO_V1, SYMMETRIC, SIMCLR, BYOL, SIMSIAM]
SHUFFLE = torch.tensor([[3, 1, 0, 5, 4, 2], [0, 2, 4, 1, 3, 5]])


@pytest.fixture
def pair() -> Pair:
    return scene(BATCH, SIDE, GRID)


def wire(name: str, wiring: Wiring, pair: Pair, **options: Any) -> Views:
    wired = wire_mask(Choice(name, options), wiring, VIEW)
    views = wired.views(pair, draws_for(BATCH), SHUFFLE)
    assert torch.equal(views.shuffle, SHUFFLE)
    return views


def compared(views: Views) -> list[tuple[Tensor, Tensor]]:
    return [(views.images[online], views.images[target]) for online, target, _ in views.pairs]


def weights(views: Views) -> list[float]:
    return [weight for *_, weight in views.pairs]


# ------------------------------------------------------------------------------ two views


@pytest.mark.parametrize("wiring", ALL)
def test_without_a_mask_there_are_two_views_and_no_more(wiring: Wiring, pair: Pair) -> None:
    """Under `both` each is online and target, and embedded once."""
    views = wire("none", wiring, pair)
    assert views.images[0] is pair.query and views.images[1] is pair.key
    assert len(views.images) == 2
    expected = [(0, 1, wiring.weight), (1, 0, wiring.weight)]
    assert list(views.pairs) == expected[: 2 if wiring.roles == "both" else 1]
    assert views.negatives == {} and views.mixed == ()


@pytest.mark.parametrize("wiring", [MOCO, MOCO_V1, SIMCLR])
@pytest.mark.parametrize("name", ["blur", "high_pass"])
def test_the_masked_query_is_compared_with_the_key_and_its_negatives(
    name: str, wiring: Wiring, pair: Pair
) -> None:
    views = wire(name, wiring, pair, hard_negative={"count": 2})
    made = apply(name, pair, GRID, hard_negative={"count": 2})
    assert views.pairs == ((0, 1, 1.0),) and len(views.images) == 2
    assert torch.equal(views.images[0], made.query)
    assert torch.equal(views.images[1], made.key)
    assert list(views.negatives) == [1] and len(views.negatives[1]) == 2
    for negative, expected in zip(views.negatives[1], made.negatives, strict=True):
        assert torch.equal(negative, expected)


@pytest.mark.parametrize("wiring", [BYOL, SIMSIAM, SYMMETRIC])
def test_each_direction_masks_its_own_online_view(wiring: Wiring, pair: Pair) -> None:
    """The target is the other view, unmasked."""
    views = wire("mean", wiring, pair, ratio=(0.25, 0.25), hard_negative=None)
    assert len(views.images) == 4 and weights(views) == [wiring.weight] * 2
    forward, backward = compared(views)
    assert forward[1] is pair.key and backward[1] is pair.query
    assert views.images[1] is pair.key
    cells = []
    for (online, _), source, activation in (
        (forward, pair.query, pair.query_activation),
        (backward, pair.key, pair.key_activation),
    ):
        mask = shared_cells(source, online, GRID)
        assert torch.equal(mask.sum((1, 2)), torch.full((BATCH,), 16))
        available = salient(activation).sum((1, 2))
        inside = (mask & salient(activation)).sum((1, 2))
        assert ((inside - 0.25 * available).abs() <= 0.5).all()
        cells.append(mask)
    assert views.negatives == {} and views.mixed == ()


def test_the_two_directions_are_drawn_independently() -> None:
    """Even where both views are the same."""
    one = scene(BATCH, SIDE, GRID)
    same = Pair(one.query, one.query.clone(), one.query_activation, one.query_activation)
    views = wire("mean", BYOL, same, ratio=(0.25, 0.25), hard_negative=None)
    (forward, _), (backward, _) = compared(views)
    assert (forward != backward).flatten(1).any(1).all()


def test_a_masked_key_is_the_target_of_its_direction(pair: Pair) -> None:
    views = wire("mean", BYOL, pair, masked="key", hard_negative=None)
    forward, backward = compared(views)
    assert forward[0] is pair.query and backward[0] is pair.key
    assert shared_cells(pair.key, forward[1], GRID).any()
    assert shared_cells(pair.query, backward[1], GRID).any()
    assert views.images[1] is forward[1]


def test_both_branches_masked_in_both_directions_are_four_views(pair: Pair) -> None:
    views = wire("mean", SIMSIAM, pair, masked="both", hard_negative=None)
    assert views.pairs == ((0, 1, 0.5), (2, 3, 0.5))
    for image, source in zip(
        views.images, [pair.query, pair.key, pair.key, pair.query], strict=True
    ):
        assert shared_cells(source, image, GRID).any()
    assert not torch.equal(views.images[0], views.images[3])


def test_hard_negatives_belong_to_the_view_they_are_cut_from(pair: Pair) -> None:
    """In the second direction, this is the first view."""
    views = wire("mean", SYMMETRIC, pair, hard_negative={"count": 2})
    targets = {target: views.images[target] for _, target, _ in views.pairs}
    assert sorted(views.negatives) == sorted(targets) and len(targets) == 2
    assert targets[1] is pair.key
    maps = {id(pair.query): pair.query_activation, id(pair.key): pair.key_activation}
    for target, several in views.negatives.items():
        source = views.images[target]
        assert len(several) == 2
        for negative in several:
            mask = shared_cells(source, negative, GRID)
            assert mask.any() and not (mask & ~salient(maps[id(source)])).any()


def test_negatives_of_a_masked_key_belong_to_the_masked_key(pair: Pair) -> None:
    views = wire(
        "mean", MOCO, pair, masked="key", ratio=(1, 1), hard_negative={"ratio": (0.5, 0.5)}
    )
    assert list(views.negatives) == [1] and views.pairs == ((0, 1, 1.0),)
    assert shared_cells(pair.key, views.images[1], GRID).all()
    mask = shared_cells(pair.key, views.negatives[1][0], GRID)
    assert not (mask & ~salient(pair.key_activation)).any()


# ----------------------------------------------------------------------------- extra views


@pytest.mark.parametrize("share_view", [False, True])
@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (MOCO, [(0, 1), (2, 1), (3, 1)]),  # three queries and one key
        (SIMCLR, list(combinations(range(4), 2))),  # 6 pairs of 4 views
        (BYOL, list(permutations(range(4), 2))),  # 12 ordered pairs
    ],
)
def test_mscns_views_are_compared_and_averaged(
    wiring: Wiring, expected: list[tuple[int, int]], share_view: bool
) -> None:
    pair = scene(BATCH, SIDE, GRID, extra=0 if share_view else 2)
    views = wire("mscn", wiring, pair, share_view=share_view)
    made = apply("mscn", pair, GRID, share_view=share_view)
    assert len(views.images) == 4
    four = zip(views.images, (made.query, made.key, *made.extra), strict=True)
    assert all(torch.equal(image, view) for image, view in four)
    comparisons = [(online, target) for online, target, _ in views.pairs]
    assert sorted(comparisons) == sorted(expected)
    assert weights(views) == pytest.approx([1 / len(expected)] * len(expected))
    assert views.negatives == {} and views.mixed == ()


def test_chins_variant_is_one_comparison(pair: Pair) -> None:
    for wiring in (MOCO, SIMCLR):
        views = wire("mscn", wiring, pair, extra_views=0, key_ratio=None)
        assert views.pairs == ((0, 1, 1.0),) and len(views.images) == 2
        torch.testing.assert_close(views.images[1], high_passed(pair.key), atol=1e-5, rtol=1e-4)
    views = wire("mscn", BYOL, pair, extra_views=0, key_ratio=None)
    assert weights(views) == [1, 1]
    targets = [target for _, target in compared(views)]
    for target, source in zip(targets, (pair.key, pair.query), strict=True):
        torch.testing.assert_close(target, high_passed(source), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 2), ({"extra_views": 3}, 3), ({"extra_views": 0}, 0), ({"share_view": True}, 0)],
)
def test_the_number_of_further_views(options: dict[str, Any], expected: int) -> None:
    wired = wire_mask(Choice("mscn", options), MOCO, VIEW)
    assert wired.extra_views == expected and not wired.reads_saliency
    assert wire_mask(Choice("blur", {}), MOCO, VIEW).extra_views == 0


# --------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("wiring", ALL)
@pytest.mark.parametrize(
    ("name", "terms"), [("mixmask", 1), ("unmix", 1), ("mixmask_star", 2), ("erase", 2)]
)
def test_mixtures_are_added_to_the_clean_views_once(
    name: str, terms: int, wiring: Wiring, pair: Pair
) -> None:
    """Only the first view is mixed, for every framework; its positives are clean second views,
    images[1]."""
    views = wire(name, wiring, pair)
    assert len(views.images) == 2
    assert views.images[0] is pair.query and views.images[1] is pair.key
    expected = [(0, 1, wiring.weight), (1, 0, wiring.weight)]
    assert list(views.pairs) == expected[: 2 if wiring.roles == "both" else 1]
    made = apply(name, pair, GRID)
    assert len(views.mixed) == terms
    for mixed, alone in zip(views.mixed, made.mixed, strict=True):
        assert torch.equal(mixed.images, alone.images)  # made from the query, not from the key
        for (rows, share), (same, alike) in zip(mixed.positives, alone.positives, strict=True):
            assert torch.equal(rows, same) and torch.equal(share, alike)


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("wiring", [BYOL, SIMSIAM])
@pytest.mark.parametrize("name", ["blur", "mean", "high_pass"])
def test_hard_negatives_need_a_framework_with_negatives(name: str, wiring: Wiring) -> None:
    message = rf"runs\.a\.hard_negative: {wiring.label} has no negatives.*hard_negative: null"
    with pytest.raises(UserError, match=message):
        wire_mask(Choice(name, {}), wiring, VIEW, "runs.a")
    wire_mask(Choice(name, {"hard_negative": None}), wiring, VIEW)


@pytest.mark.parametrize(
    ("name", "wiring"), [("mscn", MOCO_V1), ("mscn", SIMSIAM), ("adios", MOCO_V1)]
)
def test_unpublished_combinations_are_refused(name: str, wiring: Wiring) -> None:
    published = "moco, simclr, byol" + (", simsiam" if name == "adios" else "")
    message = rf"runs\.a\.name: no paper .*{name} for {wiring.label};.*form of {published}"
    with pytest.raises(UserError, match=message):
        wire_mask(Choice(name, {}), wiring, VIEW, "runs.a")


@pytest.mark.parametrize("wiring", ALL)
@pytest.mark.parametrize("name", list(MASKS))
def test_every_published_combination_is_built(name: str, wiring: Wiring) -> None:
    """Guided, mixing and erasing masks work with every framework (docs/method.md)."""
    apart = {"mscn": {"moco v2", "simclr", "byol"}}
    apart["adios"] = apart["mscn"] | {"simsiam"}
    guided = name in ("blur", "mean", "high_pass")
    choice = Choice(name, {"hard_negative": None} if guided else {})
    if wiring.label in apart.get(name, {wiring.label}):
        wired = wire_mask(choice, wiring, VIEW)
        assert wired.reads_saliency == guided
        assert isinstance(wired.masker, Masker) == (name == "adios")
    else:
        with pytest.raises(UserError):
            wire_mask(choice, wiring, VIEW)
