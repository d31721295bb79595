"""MixMask, MixMask* and erasing masks: pixels and weights of mixed queries."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmask.errors import UserError
from salmask.masks.mixing import keep_mask, mixture
from salmask.masks.mixmask_star import mixmask_star
from salmask.masks.options import function_of
from salmask.masks.wiring import wire_mask
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.shapes import Mixed, Pair, Wiring
from tests.helpers.mask_scenes import apply, correlation, draws_for, scene

MOCO = Wiring("moco", "moco v2", hard_negatives=True)
SHAPES = ["block", "discrete"]
PER = ["batch", "image"]
RATIOS: list[float | tuple[float, float]] = [0.5, 0.25, (0.0, 1.0), (0.25, 0.75)]


def own_pixels(images: Tensor, mixed: Tensor, other: list[int]) -> Tensor:
    """Pixel by pixel: True where mixed[i] shows images[i], False where it shows images[other[i]]:
    (B,H,W) bool. Fails if a pixel is from neither image, or its channels are from both."""
    mine, shown = images.tolist(), mixed.tolist()
    own = torch.zeros(len(mine), *images.shape[2:], dtype=torch.bool)
    for i, image in enumerate(shown):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                pixel = [channel[y][x] for channel in image]
                if pixel == [channel[y][x] for channel in mine[i]]:
                    own[i, y, x] = True
                else:
                    assert pixel == [channel[y][x] for channel in mine[other[i]]]
    return own


def share_of(mask: Tensor) -> float:
    """The share of True in (H,W) bool, counted."""
    count = sum(sum(row) for row in mask.tolist())
    return count / mask.numel()


def check_mixture(images: Tensor, mixed: Mixed, other: list[int], switch: bool = True) -> Tensor:
    """Checks positives against the pixels. Returns where samples show their own pixels."""
    own = own_pixels(images, mixed.images, other)
    assert len(mixed.positives) == 1 + switch
    (rows, share), *rest = mixed.positives
    assert rows.tolist() == list(range(len(images))) and rows.dtype == torch.int64
    assert share.shape == (len(images),) and share.dtype == torch.float32
    for i, mask in enumerate(own):
        if i != other[i]:  # an image mixed with itself has its own pixels only
            assert share[i].item() == pytest.approx(share_of(mask), abs=1e-6)
    for partners, weight in rest:
        assert partners.tolist() == other and partners.dtype == torch.int64
        torch.testing.assert_close(weight, 1 - share, atol=1e-6, rtol=0)
    return own


def backwards(count: int) -> list[int]:
    return [count - 1 - i for i in range(count)]


# ---------------------------------------------------------------------------------- MixMask


@given(
    seed=st.integers(0, 10**6),
    grid=st.sampled_from([2, 3, 4]),
    side=st.sampled_from([12, 13]),  # 13 px: patches of unequal size
    shape=st.sampled_from(SHAPES),
    mask_per=st.sampled_from(PER),
    ratio=st.sampled_from(RATIOS),
    switch=st.booleans(),
)
def test_mixed_images_are_two_images_and_the_weights_their_shares(
    seed: int,
    grid: int,
    side: int,
    shape: str,
    mask_per: str,
    ratio: float | tuple[float, float],
    switch: bool,
) -> None:
    pair = scene(4, side, grid, seed=seed)
    options: dict[str, Any] = {"shape": shape, "mask_per": mask_per, "ratio": ratio}
    made = apply("mixmask", pair, grid, seed, switch=switch, **options)
    assert made.query is pair.query and made.key is pair.key
    assert made.negatives == made.extra == ()
    (mixed,) = made.mixed
    own = check_mixture(pair.query, mixed, backwards(4), switch)
    bounds = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    edges = [row * side / grid for row in range(grid)]
    corners = torch.tensor([int(edge) if edge == int(edge) else int(edge) + 1 for edge in edges])
    for mask in own:
        cells = mask[corners][:, corners]  # each patch's first pixel
        low, high = (round(bound * grid**2) for bound in bounds)
        assert low <= int(cells.sum()) <= high
        # all pixels of a patch equal its first one
        for y in range(side):
            for x in range(side):
                assert mask[y, x] == cells[y * grid // side, x * grid // side]
    if mask_per == "batch":
        assert all(torch.equal(mask, own[0]) for mask in own)


def test_a_mixed_image_by_hand() -> None:
    """2x2 pixels, 2x2 patches: image i keeps two pixels and shows two of its partner's."""
    query = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2) * 10 + torch.arange(4.0).view(
        2, 2
    )
    made = apply("mixmask", Pair(query, -query), 2, shape="discrete")
    images, ((_, share), (_, rest)) = made.mixed[0].images, made.mixed[0].positives
    assert share.tolist() == rest.tolist() == [0.5] * 4
    kept = images[0, 0] < 10
    assert kept.sum() == 2
    for i in range(4):
        for channel in range(3):
            for y in range(2):
                for x in range(2):
                    source = i if kept[y, x] else 3 - i
                    assert images[i, channel, y, x] == 10 * source + 2 * y + x


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_middle_of_an_odd_batch_is_mixed_with_itself(count: int) -> None:
    pair = scene(count, 12, 4)
    (mixed,) = apply("mixmask", pair, 4, ratio=0.25).mixed
    middle = count // 2
    assert torch.equal(mixed.images[middle], pair.query[middle])
    check_mixture(pair.query, mixed, backwards(count))
    assert [float(weight[middle]) for _, weight in mixed.positives] == [0.25, 0.75]


@pytest.mark.parametrize("name", ["mixmask", "mixmask_star", "erase"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_mask_a_batch_or_one_an_image(name: str, shape: str) -> None:
    pair = scene(16, 16, 8)
    for mask_per, least, most in (("batch", 1, 1), ("image", 10, 16)):
        made = apply(name, pair, 8, shape=shape, mask_per=mask_per)
        mixed = made.mixed[-1 if name == "mixmask_star" else 0]
        if name == "erase":
            own = (mixed.images != 0).all(1)
        else:
            # a random permutation may map an image to itself
            other = mixed.positives[1][0].tolist()
            apart = [i != partner for i, partner in enumerate(other)]
            own = own_pixels(pair.query, mixed.images, other)[torch.tensor(apart)]
        assert least <= len({tuple(mask.flatten().tolist()) for mask in own}) <= most


@pytest.mark.parametrize("mask_per", PER)
def test_a_drawn_ratio_is_even_between_its_bounds(mask_per: str) -> None:
    options: dict[str, Any] = {"ratio": (0.25, 0.75), "mask_per": mask_per}
    if mask_per == "image":
        shares = apply("mixmask", scene(400, 8, 8), 8, **options).mixed[0].positives[0][1]
    else:
        results = [apply("mixmask", scene(2, 8, 8), 8, seed, **options) for seed in range(400)]
        shares = torch.stack([made.mixed[0].positives[0][1][0] for made in results])
    assert shares.min() >= 0.25 and shares.max() <= 0.75
    # uniform: deviation 1/sqrt(48); 400 draws
    assert shares.mean().item() == pytest.approx(0.5, abs=4 * 0.1443 / 20)
    assert shares.std().item() == pytest.approx(0.1443, rel=0.12)


def test_blocks_are_connected_and_discrete_patches_are_not() -> None:
    def edges(shape: str) -> int:
        pair = scene(60, 8, 8)
        mixed = apply("mixmask", pair, 8, shape=shape, mask_per="image").mixed[0]
        own = own_pixels(pair.query, mixed.images, backwards(60))
        return int((own[:, 1:] != own[:, :-1]).sum() + (own[:, :, 1:] != own[:, :, :-1]).sum())

    assert edges("block") < 0.6 * edges("discrete")


@pytest.mark.parametrize("grid", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_is_half_on_every_published_grid(grid: int, shape: str) -> None:
    pair = scene(2, 32, grid)
    for seed in range(20):
        (mixed,) = apply("mixmask", pair, grid, seed, shape=shape).mixed
        assert mixed.positives[0][1].tolist() == [0.5, 0.5]


# ------------------------------------------------------------- a grid that does not divide the view


def test_a_grid_of_48_on_224_px_by_hand() -> None:
    """224 / 48 = 14 / 3 px: patches start at 0, 5, 10, 14, ... px, so their sides are 5, 5, 4."""
    pair = scene(2, 224, 7)
    sides = torch.tensor([5, 5, 4] * 16)
    starts = (sides.cumsum(0) - sides).tolist()
    for shape in SHAPES:
        kept = keep_mask(draws_for(2, 3), pair.query, 48, 0.5, shape, "batch")
        assert kept.shape == (1, 1, 224, 224) and kept.dtype == torch.float32
        cells = kept[0, 0][starts][:, starts]
        assert set(cells.flatten().tolist()) == {0.0, 1.0} and cells.sum() == 48 * 48 / 2
        rows = cells.repeat_interleave(sides, dim=0)
        assert torch.equal(kept[0, 0], rows.repeat_interleave(sides, dim=1))
        # the kept share counts pixels: 16 to 25 for each patch
        area = (cells * sides * sides[:, None]).sum().item() / 224**2
        (mixed,) = apply("mixmask", pair, 48, 3, shape=shape).mixed
        for (_, share), expected in zip(mixed.positives, (area, 1 - area), strict=True):
            assert share.tolist() == pytest.approx([expected] * 2, abs=1e-6)
        assert area != 0.5 and area == pytest.approx(0.5, abs=0.02)


@given(
    side=st.integers(2, 40),
    data=st.data(),
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    ratio=st.sampled_from(RATIOS),
)
def test_patches_of_any_grid_differ_by_a_pixel_and_lambda_is_the_kept_share(
    side: int, data: st.DataObject, seed: int, shape: Any, ratio: float | tuple[float, float]
) -> None:
    grid = data.draw(st.integers(1, side))
    images = torch.zeros(2, 3, side, side)
    patch_of = [pixel * grid // side for pixel in range(side)]
    lengths = [patch_of.count(patch) for patch in range(grid)]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
    kept = keep_mask(draws_for(2, seed), images, grid, ratio, shape, "batch")
    assert set(kept.flatten().tolist()) <= {0.0, 1.0}
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    starts = [patch_of.index(patch) for patch in range(grid)]
    cells = kept[0, 0][starts][:, starts]
    assert round(low * grid**2) <= cells.sum() <= round(high * grid**2)
    assert torch.equal(kept[0, 0], cells[patch_of][:, patch_of])
    made = mixture(images, torch.tensor([1, 0]), kept)
    assert made.positives[0][1].tolist() == pytest.approx([share_of(kept[0, 0] > 0)] * 2, abs=1e-6)


@pytest.mark.parametrize("name", ["mixmask", "mixmask_star", "erase", "unmix"])
def test_masks_that_mix_accept_any_grid(name: str) -> None:
    ready = wire_mask(Choice(name, {}), MOCO, ViewConfig(size=32, grid=5))
    views = ready.views(scene(2, 32, 5), draws_for(2), torch.arange(2))
    assert all(torch.isfinite(mixed.images).all() for mixed in views.mixed)


@pytest.mark.parametrize("name", ["none", "high_pass", "blur", "mean", "mscn", "adios"])
def test_other_masks_need_a_grid_that_divides_the_view(name: str) -> None:
    message = rf"view\.grid: 5 does not divide view\.size \(32\): patches of the mask {name} "
    with pytest.raises(UserError, match=message):
        wire_mask(Choice(name, {}), MOCO, ViewConfig(size=32, grid=5))


# --------------------------------------------------------------------------------- MixMask*


@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    mask_per=st.sampled_from(PER),
    ratio=st.sampled_from(RATIOS),
    permutation=st.sampled_from(["different", "same"]),
)
def test_star_adds_a_blend_and_a_mask(
    seed: int,
    shape: str,
    mask_per: str,
    ratio: float | tuple[float, float],
    permutation: Literal["different", "same"],
) -> None:
    pair = scene(6, 8, 4, seed=seed)
    options: dict[str, Any] = {"shape": shape, "mask_per": mask_per, "ratio": ratio}
    made = apply("mixmask_star", pair, 4, seed, permutation=permutation, global_p=0.0, **options)
    assert made.query is pair.query and made.key is pair.key
    box, masked = made.mixed
    check_mixture(pair.query, box, backwards(6))
    other = masked.positives[1][0].tolist()
    assert sorted(other) == list(range(6))
    assert permutation == "different" or other == backwards(6)
    own = check_mixture(pair.query, masked, other)
    for i, mask in enumerate(own):
        bounds = ratio if isinstance(ratio, tuple) else (ratio, ratio)
        if other[i] != i:
            assert bounds[0] - 0.04 <= share_of(mask) <= bounds[1] + 0.04


def test_the_permutation_of_mixmask_star_is_random() -> None:
    """Steps have different permutations, and each image is mixed with every image in some step."""
    pair = scene(8, 8, 4)
    made = [mixmask_star(pair, draws_for(8, seed), 4) for seed in range(300)]
    results = [tuple(one.mixed[1].positives[1][0].tolist()) for one in made]
    assert len(set(results)) > 290
    assert sum(other == tuple(backwards(8)) for other in results) <= 1
    meets = torch.zeros(8, 8)
    for other in results:
        for i, partner in enumerate(other):
            meets[i, partner] += 1
    # 300 / 8 = 37.5 each, deviation 5.7
    assert meets.min() > 14 and meets.max() < 61


def test_the_blend_of_mixmask_star_is_that_of_unmix() -> None:
    pair = scene(4, 8, 4)
    for seed in range(5):
        for global_p in (0.0, 1.0):
            alone = apply("unmix", pair, 4, seed, global_p=global_p).mixed[0]
            blend = apply("mixmask_star", pair, 4, seed, global_p=global_p).mixed[0]
            assert torch.equal(blend.images, alone.images)
            assert torch.equal(blend.positives[0][1], alone.positives[0][1])


# -------------------------------------------------------------------------------------- erase


@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    mask_per=st.sampled_from(PER),
    ratio=st.sampled_from(RATIOS),
)
def test_the_two_halves_add_up_to_the_image(
    seed: int, shape: str, mask_per: str, ratio: float | tuple[float, float]
) -> None:
    pair = scene(4, 12, 4, seed=seed)
    options: dict[str, Any] = {"shape": shape, "mask_per": mask_per, "ratio": ratio}
    made = apply("erase", pair, 4, seed, **options)
    assert made.query is pair.query and made.key is pair.key
    first, second = made.mixed
    assert torch.equal(first.images + second.images, pair.query)
    weights = []
    for half in made.mixed:
        ((rows, share),) = half.positives
        assert rows.tolist() == [0, 1, 2, 3]
        weights.append(share)
        for image, erased, weight in zip(pair.query, half.images, share, strict=True):
            kept = 0
            for y in range(12):
                for x in range(12):
                    whole = bool((erased[:, y, x] == image[:, y, x]).all())
                    assert whole or bool((erased[:, y, x] == 0).all())
                    kept += whole
            assert weight.item() == pytest.approx(kept / 144, abs=1e-6)
    torch.testing.assert_close(weights[0] + weights[1], torch.ones(4))
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    assert all(low * 16 - 0.5 <= share * 16 <= high * 16 + 0.5 for share in weights[0].tolist())


def test_erased_pixels_may_be_noise() -> None:
    pair = scene(40, 32, 4)
    plain, noisy = (
        apply("erase", pair, 4, fill=fill, mask_per="image").mixed for fill in ("zero", "noise")
    )
    erased = [half.images == 0 for half in plain]
    for empty, half, alike in zip(erased, noisy, plain, strict=True):
        assert torch.equal(half.images[~empty], pair.query[~empty])
        grain = half.images[empty]
        assert grain.mean().abs() < 4 / len(grain) ** 0.5
        assert grain.std().item() == pytest.approx(1, rel=0.02)
        assert abs(correlation(grain, pair.query[empty])) < 0.02
        for (_, share), (_, other) in zip(half.positives, alike.positives, strict=True):
            assert torch.equal(share, other)
    both = torch.where(erased[0], noisy[0].images, noisy[1].images)  # the noise of all pixels
    flat = both.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(40)).abs().max() < 0.1


# ----------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixmask", {"shape": "round"}, r'shape: .*"round"'),
        ("mixmask", {"mask_per": "pixel"}, r'mask_per: .*"pixel"'),
        ("mixmask", {"ratio": "half"}, r'ratio.*"half"'),
        ("mixmask", {"global_p": 0.5}, r"global_p: no such key"),
        ("mixmask_star", {"permutation": "none"}, r'permutation: .*"none"'),
        ("erase", {"fill": "black"}, r'fill: .*"black"'),
        ("erase", {"switch": False}, r"switch: no such key"),
        ("unmix", {"ratio": 0.5}, r"ratio: no such key"),
    ],
)
def test_invalid_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        function_of(Choice(name, options))


def test_bounds_of_a_ratio_may_come_as_a_list() -> None:
    """YAML has no tuples."""
    pair = scene(2, 8, 4)
    listed, tupled = (apply("mixmask", pair, 4, ratio=kind((0, 1))) for kind in (list, tuple))
    assert torch.equal(listed.mixed[0].images, tupled.mixed[0].images)
