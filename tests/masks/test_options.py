"""Properties of all masks, and their options in params.yaml."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from salmask.errors import UserError
from salmask.masks import MASKS
from salmask.masks.options import function_of, input_filter, options_of, reads_saliency
from salmask.masks.wiring import wire_mask
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.shapes import Pair, Wiring
from tests.helpers.mask_scenes import apply, draws_for, part, scene, tensors

FUNCTIONS = [name for name, mask in MASKS.items() if not mask.learns]
GUIDED = ["high_pass", "blur", "mean"]
PER_IMAGE = ["none", *GUIDED, "mscn"]  # masks that do not mix images
MIXING = ["mixmask", "unmix", "mixmask_star", "erase"]
SIZES = [(32, 4), (64, 8), (224, 7)]
MOCO = Wiring("moco", "moco v2", hard_negatives=True)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FUNCTIONS),
    *((name, {"masked": "both", "hard_negative": {"count": 2}}) for name in GUIDED),
    *((name, {"where": "random", "hard_negative": None}) for name in GUIDED),
    ("high_pass", {"focal": 1.0}),
    ("mscn", {"focal": 1.0}),
    ("mscn", {"share_view": True}),
    ("unmix", {"global_p": 0.0}),
    ("mixmask", {"shape": "discrete", "mask_per": "image", "ratio": (0, 1), "switch": False}),
    ("erase", {"fill": "noise"}),
]


OF_BLUR = """
import sys
from salmask import frameworks
from salmask.masks.wiring import wire_mask
from salmask.params.values import Choice
from salmask.params.view import ViewConfig

wiring = frameworks.wiring_of(Choice("moco", {}), 128)
wire_mask(Choice("blur", {}), wiring, ViewConfig())
print(*(name for name in sys.modules if name.startswith(("salmask.masks.", "salmask.frameworks."))))
"""


def test_only_the_chosen_mask_and_framework_are_imported() -> None:
    """Code digests rely on it."""
    output = subprocess.run([sys.executable, "-c", OF_BLUR], check=True, capture_output=True)
    names = {name.rpartition(".")[2] for name in output.stdout.decode().split()}
    assert names == {"moco", "blur", "guided", "fill", "where", "options", "wiring"}


def test_every_mask_is_tested_here() -> None:
    assert set(FUNCTIONS) == {*PER_IMAGE, *MIXING}
    assert set(MASKS) == {*FUNCTIONS, "adios"}


def test_none_changes_nothing() -> None:
    pair = scene(2, 32, 4)
    made = apply("none", pair, 4)
    assert made.query is pair.query and made.key is pair.key
    assert made.negatives == made.extra == made.mixed == ()


@pytest.mark.parametrize(("side", "grid"), SIZES)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_views_keep_their_shape_and_type(
    name: str, options: dict[str, Any], side: int, grid: int
) -> None:
    made = apply(name, scene(2, side, grid, extra=2), grid, **options)
    views = [made.query, made.key, *made.negatives, *made.extra]
    for view in [*views, *(mixed.images for mixed in made.mixed)]:
        assert view.shape == (2, 3, side, side)
        assert view.dtype == torch.float32
        assert view.isfinite().all()
    for mixed in made.mixed:
        for rows, share in mixed.positives:
            assert rows.shape == share.shape == (2,)
            assert rows.dtype == torch.int64 and share.dtype == torch.float32
            assert (share >= 0).all() and (share <= 1).all()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_mask_is_pure(name: str, options: dict[str, Any]) -> None:
    """Nothing is written in place, since masks share their inputs with the framework."""
    pair, draws = scene(3, 32, 4, extra=2), draws_for(3)
    given = [pair.query, pair.key, pair.query_activation, pair.key_activation, *pair.extra]
    before = [tensor.clone() for tensor in (*given, draws.key)]
    function_of(Choice(name, options))(pair, draws, 4)
    for tensor, was in zip((*given, draws.key), before, strict=True):
        assert torch.equal(tensor, was)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_results_depend_on_the_draws_only(name: str, options: dict[str, Any]) -> None:
    pair = scene(4, 32, 4, extra=2)
    torch.manual_seed(0)
    first = tensors(apply(name, pair, 4, seed=1, **options))
    torch.manual_seed(1)
    again = tensors(apply(name, pair, 4, seed=1, **options))
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    other = tensors(apply(name, pair, 4, seed=2, **options))
    alike = all(torch.equal(one, another) for one, another in zip(first, other, strict=True))
    assert alike == (name == "none")


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, options in VARIANTS if name in PER_IMAGE]
)
def test_the_masks_of_an_image_do_not_depend_on_its_batch(
    name: str, options: dict[str, Any]
) -> None:
    pair, rows = scene(8, 32, 4, extra=2), [3, 0, 7]
    mask = function_of(Choice(name, options))
    together = mask(pair, Draws.of(0, 4, torch.arange(8)), 4)
    apart = mask(part(pair, rows), Draws.of(0, 4, torch.tensor(rows)), 4)
    for some, whole in zip(tensors(apart), tensors(together), strict=True):
        torch.testing.assert_close(some, whole[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_may_be_a_single_image(name: str) -> None:
    made = apply(name, scene(1, 32, 4, extra=2), 4)
    assert all(view.isfinite().all() for view in tensors(made))


# ------------------------------------------------------------------------------ saliency


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reads_saliency(name: str) -> None:
    pair = scene(2, 32, 4, extra=2)
    blind = replace(pair, query_activation=None, key_activation=None)
    reads = reads_saliency(Choice(name, {}))
    assert reads == (name in GUIDED)
    built = wire_mask(Choice(name, {}), MOCO, ViewConfig(size=32, grid=4))
    assert built.reads_saliency == reads
    if reads:
        with pytest.raises(ValueError, match="activation map"):
            apply(name, blind, 4)
        return
    for one, same in zip(
        tensors(apply(name, blind, 4)), tensors(apply(name, pair, 4)), strict=True
    ):
        assert torch.equal(one, same)


@pytest.mark.parametrize("name", GUIDED)
def test_a_random_mask_is_built_without_saliency(name: str) -> None:
    options = {"where": "random", "hard_negative": None}
    built = wire_mask(Choice(name, options), MOCO, ViewConfig(size=32, grid=4))
    assert not built.reads_saliency
    pair = scene(2, 32, 4)
    views = built.views(Pair(pair.query, pair.key), draws_for(2), torch.arange(2))
    assert len(views.images) == 2


# ------------------------------------------------------------------------------- options


def test_an_unknown_mask_lists_all_masks() -> None:
    message = r"runs\.a\.mask\.name: no `bluur` here; choose from adios, blur, erase"
    with pytest.raises(UserError, match=message):
        function_of(Choice("bluur", {}), "runs.a.mask")
    with pytest.raises(UserError, match=message):
        wire_mask(Choice("bluur", {}), MOCO, ViewConfig(), "runs.a.mask")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none", {"ratio": (0, 1)}, "ratio: no such key"),
        ("mean", {"sigma": 3}, "sigma: no such key"),
        (
            "mean",
            {"ratio": 0.15},
            r"ratio: must be \[low, high\], two numbers from 0 to 1, got 0\.15",
        ),
        ("blur", {"hard_negative": {"ratioo": 1}}, r"hard_negative\.ratioo: no such key"),
        ("blur", {"kernel": "wide"}, 'kernel: .*"wide"'),
        ("blur", {"where": "nowhere"}, 'where: .*"nowhere"'),
        ("mean", {"masked": "none"}, 'masked: .*"none"'),
        ("mscn", {"hard_negative": None}, "hard_negative: no such key"),
        ("mscn", {"ratio": (0.1, 0.2)}, "ratio: "),
        ("adios", {"bases": 8}, "bases: no such key"),
    ],
)
def test_invalid_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    for refuse in (
        lambda choice: function_of(choice, "params.yaml: mask"),
        lambda choice: wire_mask(choice, MOCO, ViewConfig(), "params.yaml: mask"),
    ):
        with pytest.raises(UserError, match=rf"params\.yaml: mask\.{message}"):
            refuse(Choice(name, options))


def test_published_numbers_are_the_defaults() -> None:
    """docs/method.md: a change of a default changes the recipe of a paper."""
    high_pass = options_of(Choice("high_pass", {}))
    hard = high_pass.pop("hard_negative")
    assert (hard.ratio, hard.count) == ((0.4, 0.7), 1)
    assert high_pass == {
        "ratio": (0.05, 0.25),
        "where": "balanced",
        "masked": "query",
        "threshold": 0.6,
        "kernel": 11,
        "sigma": 5.0,
        "focal": 0.2,
        "channel": 0.7,
        "focal_keep": 200.0,
        "focal_drop": 130.0,
        "noise": 0.18,
        "hard_negative_noise": 0.14,
    }
    blur = options_of(Choice("blur", {}))
    assert (blur["ratio"], blur["kernel"], blur["sigma"]) == ((0.05, 0.25), 31, 10.0)
    assert blur["hard_negative"] == options_of(Choice("mean", {}))["hard_negative"] == hard
    assert options_of(Choice("mscn", {})) == {
        "ratio": 0.15,
        "key_ratio": 0.05,
        "extra_views": 2,
        "share_view": False,
        "kernel": 11,
        "sigma": 5.0,
        "filtered": True,
        "focal": 0.4,
        "channel": 0.7,
        "focal_keep": 200.0,
        "noise": 0.18,
    }
    mixmask = {"ratio": 0.5, "shape": "block", "mask_per": "batch"}
    assert options_of(Choice("mixmask", {})) == {**mixmask, "switch": True}
    assert options_of(Choice("erase", {})) == {**mixmask, "fill": "zero"}
    assert options_of(Choice("unmix", {})) == {"global_p": 0.5}
    star = {**mixmask, "global_p": 0.5, "permutation": "different"}
    assert options_of(Choice("mixmask_star", {})) == star


# -------------------------------------------------------------------------------- filter


@pytest.mark.parametrize("name", ["high_pass", "mscn"])
def test_the_input_filter_scales_with_the_view(name: str) -> None:
    expected = {"name": "high_pass", "kernel": 3, "sigma": pytest.approx(5 * 64 / 224)}
    assert input_filter(Choice(name, {}), 64) == expected
    expected = {"name": "high_pass", "kernel": 11, "sigma": pytest.approx(5.0)}
    assert input_filter(Choice(name, {}), 224) == expected
    expected = {"name": "high_pass", "kernel": 9, "sigma": pytest.approx(6.0)}
    assert input_filter(Choice(name, {"kernel": 9, "sigma": 6}), 224) == expected


@pytest.mark.parametrize("name", [n for n in MASKS if n not in ("high_pass", "mscn")])
def test_other_masks_have_no_input_filter(name: str) -> None:
    assert input_filter(Choice(name, {}), 64) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mscn", {"ratio": 15}, "ratio: .*15"),
        (
            "mixmask",
            {"ratio": [1.5, 2]},
            r"ratio: must be a number from 0 to 1, or \[low, high\], got",
        ),
        ("mixmask", {"ratio": 2}, r"ratio: must be a number from 0 to 1, or \[low, high\], got 2"),
        ("blur", {"ratio": [0.3, 0.1]}, r"ratio: must be \[low, high\]"),
        ("blur", {"hard_negative": {"ratio": [0.3, 1.1]}}, r"hard_negative\.ratio: must be"),
        ("high_pass", {"focal": 2}, "focal: "),
        ("unmix", {"global_p": -1}, "global_p: "),
    ],
)
def test_shares_are_between_0_and_1(name, options, message):
    with pytest.raises(UserError, match=message):
        options_of(Choice(name, options))
