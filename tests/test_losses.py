import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from salmask.losses import info_nce, info_nce_logits

# One query, one key, a queue of two, all of unit length; tau 0.5.
# q = (1, 0)   k+ = (0.6, 0.8)   queue = (0, 1), (-1, 0)
# logits: q.k+ / 0.5 = 1.2,  q.(0,1) / 0.5 = 0,  q.(-1,0) / 0.5 = -2
QUERY = torch.tensor([[1.0, 0.0]])
KEY = torch.tensor([[0.6, 0.8]])
QUEUE = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).T
EXPS = [math.exp(1.2), 1.0, math.exp(-2)]
# hard negatives: q.(0.8, 0.6) / 0.5 = 1.6;  q.(-0.6, 0.8) / 0.5 = -1.2
NEGATIVE = torch.tensor([[0.8, 0.6]])
NEGATIVES = torch.tensor([[[0.8, 0.6], [-0.6, 0.8]]])


@pytest.mark.parametrize(
    ("hard_negative", "penalty", "extra"),
    [
        (None, 1.0, []),
        (NEGATIVE, 1.0, [math.exp(1.6)]),
        (NEGATIVE, 2.0, [math.exp(3.2)]),  # the penalty multiplies the similarity
        (NEGATIVE[:, None], 2.0, [math.exp(3.2)]),
        (NEGATIVES, 1.0, [math.exp(1.6), math.exp(-1.2)]),
        (NEGATIVES, 2.0, [math.exp(3.2), math.exp(-2.4)]),
        (NEGATIVE, 0.0, [1.0]),  # a constant logit of 0: the term does not vanish
        (NEGATIVES, 0.0, [1.0, 1.0]),
    ],
)
def test_info_nce_by_hand(hard_negative, penalty, extra):
    loss = info_nce(
        QUERY, KEY, QUEUE, temperature=0.5, hard_negative=hard_negative, penalty=penalty
    )
    assert loss.shape == ()
    assert loss.item() == pytest.approx(math.log(sum(EXPS + extra)) - 1.2, abs=1e-6)


def test_logits_by_hand():
    logits = info_nce_logits(
        QUERY, KEY, QUEUE, temperature=0.5, hard_negative=NEGATIVES, penalty=2.0
    )
    torch.testing.assert_close(logits, torch.tensor([[1.2, 0.0, -2.0, 3.2, -2.4]]))


def naive_info_nce(query, key, queue, temperature, negatives, penalty):
    """Eq. 2 sample by sample, the positive kept in the denominator."""
    total = 0.0
    for i in range(len(query)):

        def similarity(other, i=i):
            return sum(float(a) * float(b) for a, b in zip(query[i], other, strict=True))

        positive = math.exp(similarity(key[i]) / temperature)
        below = positive
        for j in range(queue.shape[1]):
            below += math.exp(similarity(queue[:, j]) / temperature)
        for negative in negatives[i]:
            below += math.exp(penalty * similarity(negative) / temperature)
        total -= math.log(positive / below)
    return total / len(query)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 10), st.floats(0, 3))
def test_info_nce_agrees_with_loops(batch, queue_size, count, seed, penalty):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    query, key, queue = unit(batch, 6), unit(batch, 6), unit(queue_size, 6).T
    negatives = unit(batch, count, 6)
    loss = info_nce(
        query,
        key,
        queue,
        temperature=0.2,
        hard_negative=negatives if count else None,
        penalty=penalty,
    )
    wanted = naive_info_nce(query, key, queue, 0.2, negatives, penalty)
    assert loss.item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_hard_negative_counts_for_its_own_image_only(generator):
    query, key = (F.normalize(torch.randn(3, 4, generator=generator), dim=1) for _ in range(2))
    negative = F.normalize(torch.randn(3, 4, generator=generator), dim=1)
    other = negative.clone()
    other[1] = -other[1]
    a, b = (
        info_nce_logits(query, key, key.T, temperature=1.0, hard_negative=n)
        for n in (negative, other)
    )
    torch.testing.assert_close(a[[0, 2]], b[[0, 2]])
    assert not torch.allclose(a[1], b[1])


def test_gradient_pulls_to_the_key_and_pushes_from_the_hard_negative():
    query = QUERY.clone().requires_grad_()
    info_nce(query, KEY, QUEUE, temperature=0.5, hard_negative=NEGATIVE).backward()
    # d/dq = (sum_j p_j k_j - k+) / tau, by the softmax p over the four logits
    exps = [*EXPS, math.exp(1.6)]
    p = [e / sum(exps) for e in exps]
    vectors = [(0.6, 0.8), (0.0, 1.0), (-1.0, 0.0), (0.8, 0.6)]
    wanted = [
        (sum(pj * v[c] for pj, v in zip(p, vectors, strict=True)) - KEY[0, c].item()) / 0.5
        for c in (0, 1)
    ]
    torch.testing.assert_close(query.grad, torch.tensor([wanted]))


def test_half_precision_embeddings_give_a_float32_loss():
    halves = [t.bfloat16() for t in (QUERY, KEY, QUEUE, NEGATIVE)]
    loss = info_nce(*halves[:3], temperature=0.5, hard_negative=halves[3])
    wanted = info_nce(
        *(t.float() for t in halves[:3]), temperature=0.5, hard_negative=halves[3].float()
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
