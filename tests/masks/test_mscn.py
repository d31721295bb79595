"""Masked Siamese ConvNets: random masks on filtered views, all branches, with extra views."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmask.masks.options import reads_saliency
from salmask.params.values import Choice
from salmask.shapes import Masked, Pair
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
    scene,
    window_of,
)

SIDE, GRID, BATCH = 64, 8, 6
NEAR = 1e-4  # more than rounding, less than noise


@pytest.fixture
def pair() -> Pair:
    return scene(BATCH, SIDE, GRID, extra=2)


def views(made: Masked) -> list[Tensor]:
    return [made.query, made.key, *made.extra]


# -------------------------------------------------------------------------- ratios and kinds


@pytest.mark.parametrize("channel", [0.0, 1.0])
@pytest.mark.parametrize(
    ("side", "grid", "query", "key"),
    # of 64, 49 and 16 patches: 9.6, 7.35, 2.4 are masked; 3.2, 2.45, 0.8 of the key
    [(64, 8, 10, 3), (224, 7, 7, 2), (32, 4, 2, 1)],
)
def test_the_published_ratios_are_met_in_every_channel(
    channel: float, side: int, grid: int, query: int, key: int
) -> None:
    made = apply("mscn", checkered(4, side, grid, extra=2), grid, focal=0.0, channel=channel)
    for view, expected in zip(views(made), (query, key, query, query), strict=True):
        cells = cells_of(is_noise(view), grid)
        assert torch.equal(cells.sum((2, 3)), torch.full((4, 3), expected))


@given(
    seed=st.integers(0, 10**6),
    grid=st.sampled_from([2, 4, 8]),
    ratio=st.floats(0, 1, width=32),
    key_ratio=st.floats(0, 1, width=32),
    channel=st.sampled_from([0.0, 0.7, 1.0]),
)
def test_every_view_loses_its_share(
    seed: int, grid: int, ratio: float, key_ratio: float, channel: float
) -> None:
    made = apply(
        "mscn",
        checkered(3, 32, grid, extra=2),
        grid,
        seed,
        ratio=ratio,
        key_ratio=key_ratio,
        focal=0.0,
        channel=channel,
    )
    for view, share in zip(views(made), (ratio, key_ratio, ratio, ratio), strict=True):
        for image in cells_of(is_noise(view), grid):
            assert all(rounded(mask.sum(), share * grid**2) for mask in image)
            assert channel > 0 or torch.equal(image, image[:1].expand_as(image))


def test_kinds_have_the_published_probabilities() -> None:
    """Focal .4, of the rest .7 per channel; the kind is drawn independently for each view."""
    batch, grid = 1500, 4
    made = apply("mscn", checkered(batch, 32, grid, extra=1), grid, ratio=0.25, key_ratio=0.25)
    kinds = []
    for view in views(made):
        noise = is_noise(view)
        share = noise.float().mean((1, 2, 3))  # focal: 29 of 32 px stay, 0.18; else 4 of 16
        focal = share < 0.2
        assert torch.equal(share[~focal], torch.full_like(share[~focal], 0.25))
        apart = ~focal & (noise != noise[:, :1]).flatten(1).any(1)
        assert focal.float().mean().item() == pytest.approx(0.4, abs=4 * (0.24 / batch) ** 0.5)
        values = (apart.sum() / (~focal).sum()).item()
        assert values == pytest.approx(0.7, abs=4 * (0.21 / 900) ** 0.5)
        kinds.append(focal)
    for n, one in enumerate(kinds):
        for other in kinds[:n]:
            assert abs(correlation(one, other)) < 0.11  # four deviations


@pytest.mark.parametrize(("side", "kept"), [(224, 200), (64, 57), (32, 29)])
def test_focal_keeps_a_window_of_every_view(side: int, kept: int) -> None:
    batch, grid = 4, {224: 7, 64: 8, 32: 4}[side]
    made = apply("mscn", checkered(batch, side, grid, extra=2), grid, focal=1.0)
    places = []
    for view in views(made):
        noise = is_noise(view)
        assert torch.equal(noise, noise[:, :1].expand_as(noise))
        values = [window_of(~one[0]) for one in noise]
        assert {size for *_, size in values} == {kept}
        places.append(tuple(values))
    assert len(set(places)) == 4


def test_patches_are_drawn_independently_for_every_view_and_channel() -> None:
    made = apply(
        "mscn",
        checkered(400, 32, 4, extra=2),
        4,
        focal=0.0,
        channel=1.0,
        ratio=0.5,
        key_ratio=0.5,
    )
    layers = [mask for view in views(made) for mask in cells_of(is_noise(view), 4).unbind(1)]
    for n, one in enumerate(layers):
        for other in layers[:n]:
            assert (one & other).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_every_patch_is_as_likely() -> None:
    made = apply("mscn", checkered(2000, 32, 4, extra=0), 4, focal=0.0, ratio=0.25, extra_views=0)
    share = cells_of(is_noise(made.query), 4).float().mean((0, 1))
    # 2000 images, at worst one draw each: the deviation of a share is 0.01
    torch.testing.assert_close(share, torch.full((4, 4), 0.25), atol=0.04, rtol=0)


@pytest.mark.parametrize(("options", "deviation"), [({}, 0.18), ({"noise": 0.4}, 0.4)])
@pytest.mark.parametrize("focal", [0.0, 1.0])
def test_masked_pixels_are_noise(options: dict[str, float], deviation: float, focal: float) -> None:
    pair = checkered(30, 32, 4, extra=2)
    made = apply("mscn", pair, 4, focal=focal, ratio=0.5, key_ratio=0.5, **options)
    grains = []
    for view in views(made):
        grain = view[is_noise(view)]
        # more than 15000 pixels: four deviations of the estimate are 2.3 percent
        assert grain.numel() > 15000
        assert grain.std().item() == pytest.approx(deviation, rel=0.025)
        assert abs(grain.mean()) < 0.04 * deviation
        grains.append(grain)
    shortest = min(len(grain) for grain in grains)
    for n, one in enumerate(grains):
        for other in grains[:n]:
            assert abs(correlation(one[:shortest], other[:shortest])) < 0.04


# ------------------------------------------------------------------------------------ views


def test_every_view_is_filtered_and_masked_on_its_own_pixels(pair: Pair) -> None:
    made = apply("mscn", pair, GRID, focal=0.0)
    assert len(made.extra) == 2 and made.negatives == () and made.mixed == ()
    for view, source in zip(views(made), (pair.query, pair.key, *pair.extra), strict=True):
        cells = masked_cells(high_passed(source), view, GRID, NEAR)
        expected = 3 if source is pair.key else 10
        assert torch.equal(cells.sum((2, 3)), torch.full((BATCH, 3), expected))


@pytest.mark.parametrize("extra_views", [0, 2])
def test_a_key_ratio_of_null_leaves_the_key_filtered_only(pair: Pair, extra_views: int) -> None:
    some = Pair(pair.query, pair.key, extra=pair.extra[:extra_views])
    made = apply("mscn", some, GRID, key_ratio=None, extra_views=extra_views)
    torch.testing.assert_close(made.key, high_passed(pair.key), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(made.query, high_passed(pair.query), atol=1e-3)
    assert len(made.extra) == extra_views


def test_chins_variant_has_one_masked_query_and_a_filtered_key(pair: Pair) -> None:
    """Chin et al. 2024's comparison: no extra views, key unmasked, no hard negative."""
    two = Pair(pair.query, pair.key)
    made = apply("mscn", two, GRID, key_ratio=None, extra_views=0, focal=0.0)
    torch.testing.assert_close(made.key, high_passed(pair.key), atol=1e-5, rtol=1e-4)
    cells = masked_cells(high_passed(pair.query), made.query, GRID, NEAR)
    assert torch.equal(cells.sum((2, 3)), torch.full((BATCH, 3), 10))
    assert made.extra == made.negatives == made.mixed == ()


@pytest.mark.parametrize("key_ratio", [0.05, None])
def test_shared_views_are_maskings_of_the_querys_pixels(
    pair: Pair, key_ratio: float | None
) -> None:
    alone = Pair(pair.query, pair.key)
    made = apply("mscn", alone, GRID, share_view=True, focal=0.0, key_ratio=key_ratio)
    assert len(made.extra) == 2
    source, values = high_passed(pair.query), []
    for view, expected in zip(views(made), (10, 3 if key_ratio else 0, 10, 10), strict=True):
        values.append(masked_cells(source, view, GRID, NEAR))
        assert torch.equal(values[-1].sum((2, 3)), torch.full((BATCH, 3), expected))
    assert not any(torch.equal(a, b) for n, a in enumerate(values) for b in values[:n])


def test_kernel_and_sigma_are_for_224_px(pair: Pair) -> None:
    # 52 and 7 at 224 px are 15 and 2 at 64
    made = apply("mscn", pair, GRID, kernel=52, sigma=7.0, key_ratio=None)
    expected = pair.key - blurred(pair.key, 15, 2.0)
    torch.testing.assert_close(made.key, expected, atol=1e-5, rtol=1e-4)


def test_it_reads_no_saliency(pair: Pair) -> None:
    assert not reads_saliency(Choice("mscn", {}))
    other = Pair(pair.query, pair.key, -pair.query_activation, None, pair.extra)
    for one, same in zip(
        views(apply("mscn", pair, GRID)), views(apply("mscn", other, GRID)), strict=True
    ):
        assert torch.equal(one, same)
