"""Un-Mix (Shen et al. 2022): a blend of two images, or a box of one in the other."""

import math
import random
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmask.masks import MASKS
from salmask.randomness import Draws
from salmask.shapes import Mixed, Pair
from tests.helpers.mask_scenes import apply, draws_for, scene


def uniforms(batch: int, seed: int) -> tuple[float, float, float, float]:
    """The draw of the batch, as in the code: lambda, blend or box, centre of the box."""
    share, chance, y, x = draws_for(batch, seed).shared().fork("unmix").uniform("blend", 4)[0]
    return share.item(), chance.item(), y.item(), x.item()


def unmix(pair: Pair, seed: int, global_p: float) -> Mixed:
    """The result of the mask `unmix` for a draw."""
    function = MASKS["unmix"].function
    mixed: Mixed = function(pair, draws_for(len(pair.query), seed), 4, global_p=global_p).mixed[0]
    return mixed


def box_of(share: float, y: float, x: float, side: int) -> set[tuple[int, int]]:
    """The pixels of CutMix's box: sides of floor(side * sqrt(1 - lambda)) px around a centre,
    clipped. Yun et al. 2019, App. A."""
    length = math.floor(side * math.sqrt(1 - share))
    top, left = (math.floor(centre * side - length / 2) for centre in (y, x))
    return {
        (row, column)
        for row in range(top, top + length)
        for column in range(left, left + length)
        if 0 <= row < side and 0 <= column < side
    }


def foreign(images: Tensor, mixed: Mixed) -> set[tuple[int, int]]:
    """The pixels that each image has from its partner, the same in all of them."""
    backwards, side = images.flip(0), images.shape[-1]
    values = set()
    for y in range(side):
        for x in range(side):
            pixel = mixed.images[:, :, y, x]
            if not torch.equal(pixel, images[:, :, y, x]):
                assert torch.equal(pixel, backwards[:, :, y, x])
                values.add((y, x))
    return values


@given(seed=st.integers(0, 10**6), side=st.sampled_from([8, 13, 32]), count=st.sampled_from([2, 4]))
def test_a_box_is_cut_where_the_uniforms_say(seed: int, side: int, count: int) -> None:
    pair = scene(count, side, 4, seed=seed)
    made = apply("unmix", pair, 4, seed, global_p=0.0)
    assert made.query is pair.query and made.key is pair.key
    (mixed,) = made.mixed
    share, _, y, x = uniforms(count, seed)
    box = box_of(share, y, x, side)
    assert foreign(pair.query, mixed) == box
    (rows, own), (others, rest) = mixed.positives
    assert rows.tolist() == list(range(count)) and others.tolist() == rows.flip(0).tolist()
    expected = torch.full((count,), 1 - len(box) / side**2)
    torch.testing.assert_close(own, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(rest, 1 - expected, atol=1e-6, rtol=0)


@given(seed=st.integers(0, 10**6), count=st.sampled_from([2, 3, 4]))
def test_a_blend_weights_every_pixel_equally(seed: int, count: int) -> None:
    pair = scene(count, 8, 4, seed=seed)
    (mixed,) = apply("unmix", pair, 4, seed, global_p=1.0).mixed
    share, *_ = uniforms(count, seed)
    (_, own), (_, rest) = mixed.positives
    for i in range(count):
        assert own[i].item() == pytest.approx(share, abs=1e-6)
        assert rest[i].item() == pytest.approx(1 - share, abs=1e-6)
        for y in range(8):
            for x in range(8):
                for channel in range(3):
                    shown = pair.query[i, channel, y, x].item()
                    other = pair.query[count - 1 - i, channel, y, x].item()
                    expected = share * shown + (1 - share) * other
                    assert mixed.images[i, channel, y, x].item() == pytest.approx(
                        expected, abs=1e-5
                    )


@pytest.mark.parametrize("global_p", [0.0, 0.3, 1.0])
def test_the_share_of_blends(global_p: float) -> None:
    pair, blends, count = scene(2, 8, 4), 0, 200
    for seed in range(count):
        mixed = unmix(pair, seed, global_p)
        _, chance, _, _ = uniforms(2, seed)
        pure = (mixed.images == pair.query) | (mixed.images == pair.query.flip(0))
        blend = not pure.all()
        assert blend == (chance < global_p)
        blends += blend
    assert blends / count == pytest.approx(
        global_p, abs=4 * math.sqrt(global_p * (1 - global_p) / count)
    )


def test_lambda_is_uniform_and_boxes_fall_anywhere() -> None:
    """Beta(1,1) for blends; for boxes as in a simulation of CutMix with another generator."""
    side, rng = 16, random.Random(0)
    pair = scene(2, side, 4)
    blends, boxes = (
        [unmix(pair, seed, global_p).positives[0][1][0].item() for seed in range(400)]
        for global_p in (1.0, 0.0)
    )
    ordered = sorted(blends)
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) once in a thousand
    assert max(abs(u - (n + 0.5) / 400) for n, u in enumerate(ordered)) < 1.95 / 400**0.5
    simulated = [
        1 - len(box_of(rng.random(), rng.random(), rng.random(), side)) / side**2
        for _ in range(4000)
    ]
    assert fmean(boxes) == pytest.approx(
        fmean(simulated), abs=4 * 0.25 * (1 / 400 + 1 / 4000) ** 0.5
    )
    covered = torch.zeros(side, side)
    for seed in range(200):
        for y, x in foreign(pair.query, unmix(pair, seed, 0.0)):
            covered[y, x] += 1
    assert covered.min() > 12  # the corners are covered too
    halves = (covered[:8].sum(), covered[8:].sum(), covered[:, :8].sum(), covered[:, 8:].sum())
    assert max(halves) < 1.3 * min(halves)


@pytest.mark.parametrize("name", ["mixmask", "unmix", "mixmask_star"])
def test_the_first_sample_decides_for_the_whole_batch(name: str) -> None:
    """One draw per local batch, which depends on its first sample only."""
    pair = scene(4, 8, 4)
    ids = (torch.tensor([7, 1, 2, 3]), torch.tensor([7, 11, 12, 13]), torch.tensor([8, 1, 2, 3]))
    function = MASKS[name].function
    made = [function(pair, Draws.of(0, 0, one), 4).mixed[0] for one in ids]
    assert torch.equal(made[0].images, made[1].images)
    assert not torch.equal(made[0].images, made[2].images)
