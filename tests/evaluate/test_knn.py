import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.evaluate import knn
from salmask.evaluate.features import Labelled
from salmask.params.encoder import EncoderConfig


def _scene(seed: int, train: int, queries: int, labels: list[int]):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(labels)[torch.randint(len(labels), (train,), generator=generator)]
    bank = torch.randn(train, 5, generator=generator) + chosen[:, None] % 3
    return Labelled(bank, chosen), torch.randn(queries, 5, generator=generator)


def _naive_votes(train: Labelled, query, k: int, temperature: float) -> dict[int, float]:
    def unit(v):
        v = [float(x) for x in v]
        length = math.sqrt(sum(x * x for x in v))
        return [x / length for x in v]

    q = unit(query)
    scored = sorted(
        (
            (sum(a * b for a, b in zip(q, unit(row), strict=True)), int(label))
            for row, label in zip(train.features, train.labels, strict=True)
        ),
        reverse=True,
    )
    votes: dict[int, float] = {}
    for similarity, label in scored[:k]:
        votes[label] = votes.get(label, 0) + math.exp(similarity / temperature)
    return votes


@given(
    st.integers(0, 1000),
    st.integers(1, 12),
    st.sampled_from([0.05, 0.07, 1.0]),
    st.sampled_from([[0, 1], [3, 17, 40], [0, 1, 2, 99]]),
)
def test_predictions_agree_with_loops(seed, k, temperature, labels):
    train, queries = _scene(seed, 15, 4, labels)
    result = knn.predict(train, queries, k, temperature).tolist()
    for query, label in zip(queries, result, strict=True):
        votes = _naive_votes(train, query, k, temperature)
        assert votes[label] >= max(votes.values()) * (1 - 1e-4)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_predictions_agree_with_scikit_learn(k, temperature):
    train, queries = _scene(0, 60, 40, [2, 5, 11])

    def unit(features: torch.Tensor) -> np.ndarray:
        return (features / features.norm(dim=1, keepdim=True)).numpy()

    # on the unit sphere, distance^2 = 2 - 2 * similarity
    reference = KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance**2 / 2) / temperature)
    ).fit(unit(train.features), train.labels.numpy())
    result = knn.predict(train, queries, k, temperature)
    assert result.tolist() == reference.predict(unit(queries)).tolist()


def test_one_close_neighbour_outweighs_two_far_ones():
    # similarities 1, 0.6, 0.6: exp(1/T) against 2 exp(0.6/T); equal at T = 0.4/ln 2 = 0.577
    bank = Labelled(torch.tensor([[1.0, 0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([4, 9, 9]))
    query = torch.tensor([[2.0, 0.0]])
    assert knn.predict(bank, query, 3, 0.5).tolist() == [4]
    assert knn.predict(bank, query, 3, 0.7).tolist() == [9]
    assert knn.predict(bank, query, 1, 0.7).tolist() == [4]


def test_k_beyond_the_set_takes_all_of_it():
    train, queries = _scene(1, 7, 10, [0, 1])
    assert torch.equal(knn.predict(train, queries, 500, 0.07), knn.predict(train, queries, 7, 0.07))


def test_lengths_of_features_do_not_matter():
    train, queries = _scene(2, 30, 10, [0, 1, 2])
    stretched = Labelled(train.features * torch.rand(30, 1).add(0.1), train.labels)
    assert torch.equal(
        knn.predict(train, queries, 5, 0.07), knn.predict(stretched, queries * 9, 5, 0.07)
    )


def test_many_queries_are_scored_as_few(monkeypatch):
    train, queries = _scene(3, 30, 10, [0, 1, 2])
    whole = knn.predict(train, queries, 5, 0.07)
    monkeypatch.setattr(knn, "_QUERIES", 3)
    assert torch.equal(knn.predict(train, queries, 5, 0.07), whole)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
def test_neighbours_do_not_depend_on_blocks(block, k, seed):
    train, queries = _scene(seed, 40, 6, [0, 1, 2])
    cosine = nn.functional.cosine_similarity(queries[:, None], train.features, dim=2)
    expected, rows = cosine.sort(dim=1, descending=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(knn, "_BANK", block)
        patched.setattr(knn, "_QUERIES", 4)
        similarity, nearest = knn.nearest(train, queries, k)
    assert torch.equal(nearest, rows[:, :k])
    torch.testing.assert_close(similarity, expected[:, :k])


def test_a_low_temperature_does_not_overflow():
    bank = Labelled(torch.tensor([[0.95, 0.3122], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert knn.predict(bank, torch.tensor([[1.0, 0.0]]), 2, 0.01).tolist() == [1]


def test_far_neighbours_at_a_low_temperature_still_vote():
    bank = Labelled(torch.tensor([[-0.9, 0.4359], [-0.5, 0.866]]), torch.tensor([0, 1]))
    assert knn.predict(bank, torch.tensor([[1.0, 0.0]]), 2, 0.01).tolist() == [1]


class MeanColour(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,3). blind: ignores colour."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result = images.mean((2, 3))
        return result.abs() * 0 + 1 if self.blind else result


def encoder(blind: bool = False) -> Encoder:
    return Encoder(MeanColour(blind), EncoderConfig(), InputSpec(8, 8, None)).eval()


def colours(*splits: str) -> list:
    """Red images of label 0, blue images of label 1, and an image without a label."""
    images = []
    for split in splits:
        for i in range(12):
            pixels = np.full((8, 8, 3), 60, np.uint8)
            pixels[..., 2 * (i % 2)] = 150 + 5 * i
            images.append((pixels, i % 2, split))
        images.append((np.zeros((8, 8, 3), np.uint8), -1, split))
    return images


def test_metrics_are_named_by_split_k_and_encoder(make_manifest, job):
    rows = make_manifest(colours("train", "val", "decorrelated"))
    encoders = {"trained": encoder(), "random-0": encoder(), "random-1": encoder(blind=True)}
    result = knn.run(encoders, rows, job, k=(1, 200))
    assert set(result) == {
        f"{prefix}{kind}knn{k}_top1"
        for prefix in ("", "decorrelated_")
        for kind in ("", "random_")
        for k in (1, 200)
    }
    assert result["knn1_top1"] == result["decorrelated_knn1_top1"] == pytest.approx(100)
    # the mean of 100% for one untrained encoder and 50% for the blind one
    assert result["random_knn1_top1"] == pytest.approx(75)


def test_without_labels_there_is_nothing_to_score(make_manifest, job):
    rows = make_manifest([(p, -1, s) for p, _, s in colours("train", "val")])
    assert knn.run({"trained": encoder()}, rows, job) == {}
