import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.saliency import correction, crops
from salmask.saliency.correction import Correction, fit
from salmask.saliency.store import SaliencyStore

LEVELS = (64, 128)


def standard(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B,U,V) with mean 0 and deviation 1."""
    mean = maps.mean((1, 2), keepdim=True)
    return (maps - mean) / maps.std((1, 2), keepdim=True, correction=0)


def views(count: int, seed: int, grid: tuple[int, int] = (5, 5), levels=LEVELS):
    """Views of smooth maps: their crops with a margin, their zoom, what is blended inside."""
    generator = torch.Generator().manual_seed(seed)
    seeds = [torch.rand(count, 1, 3, 3, generator=generator) for _ in levels]
    maps = {
        level: torch.nn.functional.interpolate(drawn, (level // 16,) * 2, mode="bilinear")[:, 0]
        for level, drawn in zip(levels, seeds, strict=True)
    }
    size = 0.45 + 0.5 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([torch.rand(count, 2, generator=generator) * (1 - size), size], 1)
    measured = {level: crops.resample(m, boxes, grid, margin=1) for level, m in maps.items()}
    zoom = crops.zoom_of(boxes)
    return measured, zoom, crops.blend(measured, zoom)[:, 1:-1, 1:-1]


def lifted(blended: torch.Tensor) -> torch.Tensor:
    """Made-up maps of the views: the outermost rows are one standard deviation higher."""
    own = blended.clone()
    own[:, [0, -1]] += blended.std((1, 2), keepdim=True)
    return own


def off(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean squared distance, whatever the scale."""
    return float((standard(result) - standard(expected)).square().mean())


@pytest.fixture(scope="module")
def fitted() -> Correction:
    """A correction that is fitted to `lifted` on 96 views, with fewer steps than usual."""
    measured, zoom, blended = views(96, seed=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(correction, "_STEPS", 100)
        return fit(measured, zoom, lifted(blended))


def briefly(monkeypatch, mirrored: bool = False, levels=LEVELS) -> Correction:
    """A few steps on a few views, or on the same views mirrored."""
    monkeypatch.setattr(correction, "_STEPS", 10)
    measured, zoom, blended = views(40, seed=3, levels=levels)
    own = lifted(blended)
    own[:, :, 0] *= 3  # so that left and right differ
    if mirrored:
        measured, own = {level: crop.flip(-1) for level, crop in measured.items()}, own.flip(-1)
    return fit(measured, zoom, own)


def equal(a: Correction, b: Correction) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------------------------ untrained


@given(st.integers(0, 100), st.integers(1, 6), st.integers(1, 6))
def test_untrained_it_adds_nothing(seed, high, wide):
    measured, zoom, blended = views(3, seed, (high, wide))
    torch.testing.assert_close(Correction(2)(measured, zoom), blended, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------- fitting


def test_what_is_the_same_in_all_views_is_learnt(fitted):
    measured, zoom, blended = views(64, seed=2)
    own = lifted(blended)
    assert off(fitted(measured, zoom), own) < off(blended, own) / 30


def test_the_result_keeps_the_units_of_the_maps(fitted):
    # Higher rows raise the mean too. Eq. 1 does not depend on the mean, so it is not learned: the
    # corrected map keeps the mean of the blended one.
    measured, zoom, blended = views(16, seed=4)
    large = fitted({level: 1000 * crop for level, crop in measured.items()}, zoom)
    result = fitted(measured, zoom)
    torch.testing.assert_close(large, 1000 * result, rtol=1e-3, atol=0.1)
    torch.testing.assert_close(result.mean((1, 2)), blended.mean((1, 2)), atol=0.05, rtol=0)


@pytest.mark.parametrize("grid", [(8, 6), (3, 3), (7, 10)])
def test_other_grids_than_the_one_it_learnt_from_are_corrected_too(fitted, grid):
    measured, zoom, blended = views(64, 5, grid)
    own, result = lifted(blended), fitted(measured, zoom)
    assert result.shape == (64, *grid)
    assert off(result, own) < off(blended, own) / 4


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (2, 1)])
def test_the_smallest_grids_give_numbers(fitted, grid):
    measured, zoom, _ = views(3, 6, grid)
    result = fitted(measured, zoom)
    assert result.shape == (3, *grid) and result.isfinite().all()


def test_one_level_is_enough(monkeypatch):
    monkeypatch.setattr(correction, "_STEPS", 100)
    measured, zoom, blended = views(64, seed=7, levels=(64,))
    model = fit(measured, zoom, lifted(blended))
    measured, zoom, blended = views(64, seed=8, levels=(64,))
    own = lifted(blended)
    assert off(model(measured, zoom), own) < off(blended, own) / 10


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0, 300.0])
def test_a_constant_map_stays_constant(fitted, value):
    measured = {level: torch.full((2, 9, 9), value) for level in LEVELS}
    result = fitted(measured, torch.tensor([1.0, 1.7]))
    torch.testing.assert_close(result, torch.full((2, 7, 7), value), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_view_stays_constant_whatever_surrounds_it(fitted, value):
    measured = {level: torch.rand(2, 9, 9) for level in LEVELS}
    for crop in measured.values():
        crop[:, 1:-1, 1:-1] = value
    result = fitted(measured, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(result, torch.full((2, 7, 7), value), rtol=1e-6, atol=0)


# --------------------------------------------------------------------------------------- mirrors


@given(st.integers(1, 9), st.integers(1, 9))
def test_positions_are_the_same_for_mirrored_views(high, wide):
    places = correction._positions(torch.zeros(1, high + 2, wide + 2))
    torch.testing.assert_close(places, places.flip(-1))


def test_places_by_hand():
    # two rows and one column inside a margin of one
    y, y2, x2, outer_row, beyond_row, outer_column, beyond_column = correction._positions(
        torch.zeros(1, 4, 3)
    )
    assert y[:, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert y2[:, 2].tolist() == [2.25, 0.25, 0.25, 2.25]
    assert x2[0].tolist() == [4, 0, 4]
    assert outer_row[:, 0].tolist() == [0, 1, 1, 0]
    assert beyond_row[:, 1].tolist() == [1, 0, 0, 1]
    assert outer_column[1].tolist() == [0, 1, 0]
    assert beyond_column[0].tolist() == [1, 0, 1]


def test_mirrored_views_give_the_same_correction(monkeypatch):
    """Each view is also used mirrored, so left and right are treated equally."""
    # all views in one batch
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.arange(high))
    monkeypatch.setattr(correction, "_BATCH", 80)
    plain, mirrored = briefly(monkeypatch), briefly(monkeypatch, mirrored=True)
    for a, b in zip(plain.parameters(), mirrored.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    start = Correction(2).layers[-1].weight  # zeros; the fit changes them
    assert (plain.layers[-1].weight - start).abs().max() > 1e-2


# ----------------------------------------------------------------------------------- same bytes


def test_the_number_of_threads_does_not_change_a_byte_and_is_put_back(monkeypatch):
    result = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result[threads] = briefly(monkeypatch)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert equal(result[1], result[2])


def test_fitting_neither_reads_nor_moves_the_global_generator(monkeypatch):
    fits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fits.append(briefly(monkeypatch))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(*fits)


def test_what_is_fitted_is_ready_for_use(fitted):
    assert not fitted.training
    assert not any(weight.requires_grad for weight in fitted.parameters())


def test_a_failure_leaves_the_threads_and_the_generator_as_they_were(monkeypatch):
    def fails(*ignored, **named):
        assert torch.get_num_threads() == 1
        raise RuntimeError("interrupted fit")

    monkeypatch.setattr(torch.optim, "AdamW", fails)
    before = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="interrupted fit"):
            briefly(monkeypatch)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------- in crops


def test_a_store_crops_with_its_correction(drawn_correction, generator):
    sides = {64: (4, 5), 128: (8, 9)}
    maps = {n: torch.rand(3, *side, generator=generator).half() for n, side in sides.items()}
    held = SaliencyStore({}, maps, drawn_correction)
    ids, flips = torch.tensor([2, 0]), torch.tensor([False, False])
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0]])
    result = held.crop(ids, boxes, flips, (3, 4))
    measured = {n: crops.resample(m[ids].float(), boxes, (3, 4), margin=1) for n, m in maps.items()}
    zoom = torch.tensor([(0.6 * 0.7) ** -0.5, 1.0])
    torch.testing.assert_close(result, drawn_correction(measured, zoom))
    plain = SaliencyStore({}, maps).crop(ids, boxes, flips, (3, 4))
    assert off(result, plain) > 1e-2
    mirrored = held.crop(ids, boxes, torch.tensor([True, False]), (3, 4))
    torch.testing.assert_close(mirrored, torch.stack([result[0].flip(-1), result[1]]))
