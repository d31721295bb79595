import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.detection.sampling import everything, subsample

KEY = torch.tensor(12345)


@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_left_is_as_much_as_may_be(labels, most, positive, key):
    before = torch.tensor(labels)
    kept = subsample(before, torch.tensor(key), "x", most, positive)
    front, back = int((before >= 1).sum()), int((before == 0).sum())
    drawn = min(front, int(most * positive))
    assert int((kept >= 1).sum()) == drawn
    assert int((kept == 0).sum()) == min(back, most - drawn)
    assert torch.equal(kept[kept >= 0], before[kept >= 0])


def test_everything_has_the_same_chance():
    labels = torch.tensor([1] * 10 + [0] * 30)
    count = torch.zeros(40)
    for key in range(2000):
        count += subsample(labels, torch.tensor(key * 7919), "x", 8, 0.5) >= 0
    assert (count[:10] / 2000 - 0.4).abs().max() < 0.05
    assert (count[10:] / 2000 - 4 / 30).abs().max() < 0.04


def test_purposes_and_keys_draw_differently_and_floats_will_do():
    labels = torch.tensor([1.0] * 20 + [0.0] * 20)
    some = subsample(labels, KEY, "x", 10, 0.5)
    assert some.dtype == torch.float32
    assert torch.equal(some, subsample(labels, KEY, "x", 10, 0.5))
    assert not torch.equal(some, subsample(labels, KEY, "y", 10, 0.5))
    assert not torch.equal(some, subsample(labels, KEY + 1, "x", 10, 0.5))


def test_the_sampler_takes_what_is_left():
    (front,), (back,) = everything([torch.tensor([2, -1, 0, 1])])
    assert front.tolist() == [True, False, False, True]
    assert back.tolist() == [False, False, True, False]
