import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from salmask.losses import (
    cosine,
    first_wins,
    in_batch,
    info_nce,
    info_nce_logits,
    lambda_mix,
    nt_xent_logits,
    spread,
)

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
    expected = naive_info_nce(query, key, queue, 0.2, negatives, penalty)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


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
    expected = [
        (sum(pj * v[c] for pj, v in zip(p, vectors, strict=True)) - KEY[0, c].item()) / 0.5
        for c in (0, 1)
    ]
    torch.testing.assert_close(query.grad, torch.tensor([expected]))


def test_half_precision_embeddings_give_a_float32_loss():
    halves = [t.bfloat16() for t in (QUERY, KEY, QUEUE, NEGATIVE)]
    loss = info_nce(*halves[:3], temperature=0.5, hard_negative=halves[3])
    expected = info_nce(
        *(t.float() for t in halves[:3]), temperature=0.5, hard_negative=halves[3].float()
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


# ------------------------------------------------------------------------------------- nt_xent

# Two images, all of unit length, tau 0.5.
# first: a0 = (1, 0), a1 = (0, 1)      second: b0 = (0.6, 0.8), b1 = (-0.8, 0.6)
# over tau: a0.b0 = 1.2,  a0.a1 = 0,  a0.b1 = -1.6
#           a1.b1 = 1.2,  a1.a0 = 0,  a1.b0 = 1.6
#           b0.a0 = 1.2,  b0.b1 = 0,  b0.a1 = 1.6
#           b1.a1 = 1.2,  b1.b0 = 0,  b1.a0 = -1.6
# so rows a0 and b1 see the positive 1.2 and the others 0 and -1.6, a1 and b0 1.2, 0 and 1.6.
FIRST = torch.eye(2)
SECOND = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
ROW = {
    -1.6: math.exp(1.2) + 1 + math.exp(-1.6),
    1.6: math.exp(1.2) + 1 + math.exp(1.6),
}
# hard negatives: a0.(0.8, -0.6) / tau = 1.6, a1.(0.6, 0.8) / tau = 1.6
HARD = torch.tensor([[0.8, -0.6], [0.6, 0.8]])


def nt_xent(first: torch.Tensor, second: torch.Tensor, **options: Any) -> torch.Tensor:
    """The mean loss over the rows of both views."""
    return F.cross_entropy(*nt_xent_logits(first, second, **options))


def test_nt_xent_by_hand():
    loss = nt_xent(FIRST, SECOND, temperature=0.5)
    expected = (2 * math.log(ROW[-1.6]) + 2 * math.log(ROW[1.6])) / 4 - 1.2
    assert loss.shape == () and loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("hard", "penalty", "extra"),
    [
        (HARD, 1.0, math.exp(1.6)),
        (HARD, 2.0, math.exp(3.2)),  # the penalty multiplies the similarity
        (HARD[:, None], 2.0, math.exp(3.2)),
        (HARD[:, None].expand(2, 3, 2), 2.0, 3 * math.exp(3.2)),
        (HARD, 0.0, 1.0),  # a constant logit of 0
    ],
)
def test_hard_negatives_by_hand_count_for_the_first_views_rows(hard, penalty, extra):
    loss = nt_xent(FIRST, SECOND, temperature=0.5, hard_negative=hard, penalty=penalty)
    with_it = math.log(ROW[-1.6] + extra) + math.log(ROW[1.6] + extra)  # a0 and a1
    without = math.log(ROW[1.6]) + math.log(ROW[-1.6])  # b0 and b1
    assert loss.item() == pytest.approx((with_it + without) / 4 - 1.2, abs=1e-6)


def test_nt_xent_logits_by_hand():
    logits, positive = nt_xent_logits(
        FIRST, SECOND, temperature=0.5, hard_negative=HARD, penalty=2.0
    )
    no = -math.inf  # not compared: itself, and rows without hard negatives
    expected = [
        [no, 0.0, 1.2, -1.6, 3.2],
        [0.0, no, 1.6, 1.2, 3.2],
        [1.2, 1.6, no, 0.0, no],
        [-1.6, 1.2, 0.0, no, no],
    ]
    torch.testing.assert_close(logits, torch.tensor(expected))
    assert positive.tolist() == [2, 3, 0, 1]


def naive_nt_xent(first, second, temperature, negatives, penalty):
    """Slow reference, pair by pair. negatives[i]: hard negatives of image i."""
    batch, both = len(first), [*first.tolist(), *second.tolist()]

    def similarity(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = 0.0
    for row, own in enumerate(both):
        positive = math.exp(similarity(own, both[(row + batch) % (2 * batch)]) / temperature)
        below = sum(
            math.exp(similarity(own, other) / temperature)
            for column, other in enumerate(both)
            if column != row
        )
        if row < batch:
            for negative in negatives[row].tolist():
                below += math.exp(penalty * similarity(own, negative) / temperature)
        total -= math.log(positive / below)
    return total / (2 * batch)


@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 10), st.floats(0, 3))
def test_nt_xent_agrees_with_loops(batch, count, seed, penalty):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    first, second, negatives = unit(batch, 6), unit(batch, 6), unit(batch, count, 6)
    hard = negatives if count else None
    loss = nt_xent(first, second, temperature=0.2, hard_negative=hard, penalty=penalty)
    expected = naive_nt_xent(first, second, 0.2, negatives, penalty)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_nt_xents_hard_negative_counts_for_its_own_image_only(generator):
    first, second, negative = (
        F.normalize(torch.randn(3, 4, generator=generator), dim=1) for _ in range(3)
    )
    other = negative.clone()
    other[1] = -other[1]
    a, b = (nt_xent_logits(first, second, temperature=1.0, hard_negative=n)[0]
            for n in (negative, other))  # fmt: skip
    rest = [0, 2, 3, 4, 5]  # row 1 is image 1 in the first view, row 4 in the second
    assert torch.equal(a[rest], b[rest]) and not torch.allclose(a[1], b[1])


def test_nt_xents_gradient_by_hand_reaches_the_hard_negative():
    first, second, hard = (t.clone().requires_grad_() for t in (FIRST, SECOND, HARD))
    nt_xent(first, second, temperature=0.5, hard_negative=hard, penalty=2.0).backward()
    # d/dn_i = p * penalty * a_i / tau / 4 rows, with p the softmax of the hard negative in row a_i
    for i, row in enumerate((-1.6, 1.6)):
        p = math.exp(3.2) / (ROW[row] + math.exp(3.2))
        torch.testing.assert_close(hard.grad[i], p * 2.0 * FIRST[i] / 0.5 / 4)
    assert first.grad.any() and second.grad.any()


def test_nt_xent_of_half_precision_is_float32():
    halves = [t.bfloat16() for t in (FIRST, SECOND, HARD)]
    options = {"temperature": 0.5, "penalty": 2.0}
    loss = nt_xent(*halves[:2], hard_negative=halves[2], **options)
    singles = [t.float() for t in halves]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nt_xent(*singles[:2], hard_negative=singles[2], **options))


# ----------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("rows", [[0, 1], [1, 0], [1, 1]])
def test_in_batch_by_hand(rows):
    # of a0 and a1 with the keys b0, b1 over tau: (1.2, -1.6) and (1.6, 1.2)
    losses = in_batch(FIRST, SECOND, torch.tensor(rows), temperature=0.5)
    logits = [[1.2, -1.6], [1.6, 1.2]]
    expected = [
        math.log(sum(map(math.exp, row))) - row[r] for row, r in zip(logits, rows, strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_in_batchs_gradient_reaches_queries_and_keys():
    query, key = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
    in_batch(query, key, torch.tensor([0, 1]), temperature=0.5)[0].backward()
    p = torch.softmax(torch.tensor([1.2, -1.6]), 0) - torch.tensor([1.0, 0.0])
    torch.testing.assert_close(key.grad, p[:, None] * FIRST[0] / 0.5)
    torch.testing.assert_close(query.grad[0], p @ SECOND / 0.5)
    assert not query.grad[1].any()


def test_first_wins_by_hand():
    losses = first_wins(torch.tensor([[1.2, 0.0], [-1.0, 3.0]]))
    expected = [math.log(1 + math.exp(-1.2)), math.log(1 + math.exp(4.0))]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_lambda_mix_by_hand():
    # (0.25 * 4 + 1 * 2 + 0 * 8) / 3: divided by the batch size, not by the sum of shares
    mixed = lambda_mix(torch.tensor([4.0, 2.0, 8.0]), torch.tensor([0.25, 1.0, 0.0]))
    assert mixed.item() == pytest.approx(1.0)


# ------------------------------------------------------------------------------- BYOL and SimSiam


def test_cosine_by_hand():
    online = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    target = torch.tensor([[0.6, 0.8], [5.0, 5.0], [0.0, 1.0]])
    values = cosine(online, target)
    torch.testing.assert_close(values, torch.tensor([-0.6, -1.0, 1.0]))
    assert cosine(online.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_spread_by_hand():
    # (1,0), (0,1), (-1,0), (0,-1): each coordinate deviates by sqrt(1/2), times sqrt(2)
    cross = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]])
    assert spread(cross).item() == pytest.approx(1.0)
    # (1,0), (0,1): each deviates by 1/2
    assert spread(cross[:2]).item() == pytest.approx(0.5 * math.sqrt(2))
    assert spread(torch.tensor([[1.0, 2.0], [2.0, 4.0]])).item() == pytest.approx(0, abs=1e-6)
    assert not spread(cross.requires_grad_()).requires_grad


def test_random_directions_spread_by_1(generator):
    assert spread(torch.randn(4000, 32, generator=generator)).item() == pytest.approx(1, abs=0.01)


def test_autocast_does_not_touch_the_losses(generator):
    first, second, third = (
        F.normalize(torch.randn(5, 16, generator=generator), dim=1) for _ in range(3)
    )
    rows = torch.tensor([4, 3, 2, 1, 0])

    def all_of_them() -> list[torch.Tensor]:
        return [
            info_nce_logits(first, second, third.T, temperature=0.1, hard_negative=third),
            nt_xent_logits(first, second, temperature=0.1, hard_negative=third)[0],
            in_batch(first, second, rows, temperature=0.1),
            cosine(first, second),
        ]

    expected = all_of_them()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # the losses must not be computed like this
        assert (first @ second.T).dtype == torch.bfloat16
        values = all_of_them()
    for a, b in zip(values, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
