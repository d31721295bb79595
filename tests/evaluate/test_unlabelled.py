"""Measures without labels, against numbers that were worked out by hand."""

import math

import pytest
import torch

from salmask.evaluate.unlabelled import rankme, scores


def test_equal_singular_values_have_full_rank():
    assert rankme(torch.eye(4)) == pytest.approx(4, abs=1e-4)
    assert rankme(3 * torch.eye(4)[:, :3]) == pytest.approx(3, abs=1e-4)


def test_rankme_by_hand():
    """p = 3/4 and 1/4: exp(3/4 ln(4/3) + 1/4 ln 4) = 4 / 3^(3/4)."""
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 3**0.75, abs=1e-4)


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [-2.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_multiples_of_one_vector_have_rank_one(rows):
    assert rankme(torch.tensor(rows)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_have_no_rank(value):
    assert math.isnan(rankme(torch.tensor([[1.0, value], [0.0, 1.0]])))


def test_embeddings_are_not_centred():
    """Singular values of [[2,0],[2,1]]: their sum is sqrt(|A|^2 + 2 |det A|) = sqrt(13)."""
    high = (math.sqrt(13) + math.sqrt(5)) / 2
    p = high / math.sqrt(13)
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert rankme(torch.tensor([[2.0, 0.0], [2.0, 1.0]])) == pytest.approx(expected, abs=1e-4)


def test_scores_by_hand():
    """Two orthogonal unit vectors: each coordinate is 0 or 1, with a standard deviation of 1/2."""
    expected = {"rankme": 2.0, "spread": 0.5 * math.sqrt(2)}
    assert scores(torch.eye(2)) == pytest.approx(expected, abs=1e-4)
