import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask import randomness
from salmask.randomness import Draws, batch_shuffle, epoch_order

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20, unique=True)


def lowbias32(x: int) -> int:
    """Chris Wellons' lowbias32 on Python integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_mix_is_lowbias32(words):
    mixed = randomness.mix(torch.tensor(words))
    assert mixed.tolist() == [lowbias32(w) for w in words]


@given(IDS, st.randoms(), st.sampled_from(["uniform", "normal"]))
def test_a_sample_draws_the_same_alone_and_in_any_batch(ids, shuffler, kind):
    together = getattr(Draws.of(3, 5, torch.tensor(ids)), kind)("purpose", 2, 3)
    order = list(range(len(ids)))
    shuffler.shuffle(order)
    reordered = getattr(Draws.of(3, 5, torch.tensor([ids[i] for i in order])), kind)(
        "purpose", 2, 3
    )
    assert torch.equal(reordered, together[order])
    alone = getattr(Draws.of(3, 5, torch.tensor(ids[:1])), kind)("purpose", 2, 3)
    assert torch.equal(alone, together[:1])


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_the_same_purpose_repeats_its_numbers(kind):
    draws = Draws.of(0, 0, torch.arange(4))
    assert torch.equal(getattr(draws, kind)("a", 5), getattr(draws, kind)("a", 5))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 5, 7)])
def test_shapes_are_one_draw_per_sample(kind, shape):
    drawn = getattr(Draws.of(0, 0, torch.arange(6)), kind)("a", *shape)
    assert drawn.shape == (6, *shape)
    assert drawn.dtype == torch.float32


def test_uniforms_fill_zero_to_one_evenly():
    drawn = Draws.of(1, 2, torch.arange(4096)).uniform("a", 16).flatten()
    n = len(drawn)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(drawn.var() - 1 / 12) < 0.001
    counts = torch.histc(drawn, 64, 0, 1)
    chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert 20 < chi_square < 130  # 63 degrees of freedom: 63 +- 11


def test_normals_follow_the_normal_distribution():
    drawn = Draws.of(1, 2, torch.arange(256)).normal("a", 3, 16, 16).flatten().double()
    n = len(drawn)
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs((drawn**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / n)
    expected = 0.5 * (1 + torch.erf(drawn.sort().values / math.sqrt(2)))
    values = (torch.arange(n) + 0.5) / n
    assert (expected - values).abs().max() < 2 / math.sqrt(n)  # Kolmogorov-Smirnov


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"epoch": 1},
        {"purpose": "query.patches2"},
        {"purpose": "key.patches"},
        {"shift": 1},
    ],
    ids=str,
)
def test_other_seeds_epochs_purposes_and_ids_are_uncorrelated(kind, other):
    base = {"seed": 7, "epoch": 0, "purpose": "query.patches", "shift": 0}

    def draw(seed: int, epoch: int, purpose: str, shift: int) -> torch.Tensor:
        return getattr(Draws.of(seed, epoch, torch.arange(2000) + shift), kind)(purpose, 20)

    assert abs(_correlation(draw(**base), draw(**(base | other)))) < 4 / math.sqrt(40000)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("lag", [1, 2, 10, 25])
def test_numbers_of_one_draw_are_uncorrelated(kind, lag):
    drawn = getattr(Draws.of(0, 0, torch.arange(2000)), kind)("a", 50)
    pairs = 2000 * (50 - lag)
    assert abs(_correlation(drawn[:, lag:], drawn[:, :-lag])) < 4 / math.sqrt(pairs)


def test_views_of_any_size_have_normals():
    drawn = Draws.of(0, 0, torch.arange(3)).normal("a", 3, 700, 700)
    assert drawn.shape == (3, 3, 700, 700)
    assert abs(_correlation(drawn[0], drawn[1])) < 0.01
    assert drawn.std().item() == pytest.approx(1, abs=0.01)


@given(IDS, st.integers(0, 1000), st.integers(0, 1000))
def test_an_epoch_visits_every_sample_once(ids, seed, epoch):
    order = epoch_order(seed, epoch, torch.tensor(ids))
    assert sorted(order.tolist()) == sorted(ids)


def test_epochs_and_seeds_visit_in_different_orders():
    ids = torch.arange(100)
    orders = [epoch_order(seed, epoch, ids) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9


def test_every_sample_is_as_likely_at_every_place():
    first = torch.stack([epoch_order(0, epoch, torch.arange(10)) for epoch in range(2000)])
    counts = torch.stack([(first == i).sum(0) for i in range(10)])  # (sample, place)
    chi_square = ((counts - 200.0) ** 2 / 200).sum()
    assert 45 < chi_square < 130  # 81 degrees of freedom: 81 +- 13


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(1, 64))
def test_a_batch_shuffle_is_two_permutations(seed, epoch, step, count):
    for order in batch_shuffle(seed, epoch, step, count):
        assert sorted(order.tolist()) == list(range(count))


def test_batch_shuffles_differ_between_steps():
    shuffles = {tuple(o.tolist()) for step in range(20) for o in batch_shuffle(0, 0, step, 32)}
    assert len(shuffles) == 40  # those of keys and of hard negatives
