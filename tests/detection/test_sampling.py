import torch
from hypothesis import given
from hypothesis import strategies as st

from salmask.detection.sampling import subsample

KEY = torch.tensor(12345)


@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_the_sample_is_as_large_as_possible(labels, count, share, key):
    given = torch.tensor(labels)
    sampled = subsample(given, torch.tensor(key), "x", count, share)
    positive, negative = int((given >= 1).sum()), int((given == 0).sum())
    expected = min(positive, int(count * share))
    assert int((sampled >= 1).sum()) == expected
    assert int((sampled == 0).sum()) == min(negative, count - expected)
    assert torch.equal(sampled[sampled >= 0], given[sampled >= 0])


def test_all_labels_have_the_same_chance():
    labels = torch.tensor([1] * 10 + [0] * 30)
    counts = torch.zeros(40)
    for key in range(2000):
        counts += subsample(labels, torch.tensor(key * 7919), "x", 8, 0.5) >= 0
    assert (counts[:10] / 2000 - 0.4).abs().max() < 0.05
    assert (counts[10:] / 2000 - 4 / 30).abs().max() < 0.04


def test_purposes_and_keys_draw_different_samples_and_labels_may_be_float():
    labels = torch.tensor([1.0] * 20 + [0.0] * 20)
    sampled = subsample(labels, KEY, "x", 10, 0.5)
    assert sampled.dtype == torch.float32
    assert torch.equal(sampled, subsample(labels, KEY, "x", 10, 0.5))
    assert not torch.equal(sampled, subsample(labels, KEY, "y", 10, 0.5))
    assert not torch.equal(sampled, subsample(labels, KEY + 1, "x", 10, 0.5))
