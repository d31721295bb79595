"""Transfer: the roles of the splits, the choice of the penalty, and the two scores."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.errors import UserError
from salmask.evaluate import features, transfer
from salmask.evaluate.features import Labelled, accuracy, mean_per_class
from salmask.evaluate.subsets import hold_out
from salmask.params.encoder import EncoderConfig


class MeanColour(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,3)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


ENCODERS = {"trained": Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 9, None)).eval()}


def coloured(*splits: str, each: int = 10, classes: int = 3) -> list:
    """Colours of three hues in each split, and an image without a label."""
    images = []
    for split in splits:
        for i in range(classes * each):
            pixels = np.full((10, 12, 3), 70, np.uint8)
            pixels[..., i % classes] = 120 + 3 * (i // classes) + 5 * (split == "test")
            images.append((pixels, i % classes, split))
        images.append((np.zeros((8, 8, 3), np.uint8), -1, split))
    return images


@pytest.fixture
def make(make_manifest):
    return lambda *splits, **more: make_manifest(coloured(*splits, **more), ("r", "g", "b"))


# -------------------------------------------------------------------------------------- scores


def test_mean_per_class_by_hand():
    labels = torch.tensor([7, 7, 7, 7, 2, 2, 9])
    result = torch.tensor([7, 7, 7, 2, 2, 7, 2])
    # 3 of 4 of class 7, 1 of 2 of class 2, 0 of 1 of class 9; other classes do not count
    assert mean_per_class(result, labels) == pytest.approx(100 * (0.75 + 0.5 + 0) / 3)
    assert accuracy(result, labels) == pytest.approx(100 * 4 / 7)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 9), st.integers(2, 5))
def test_mean_per_class_ignores_how_often_a_class_is_tested(labels, seed, times):
    labels = torch.tensor(labels)
    result = torch.randint(4, labels.shape, generator=torch.Generator().manual_seed(seed))
    repeat = torch.where(labels == labels[0], times, 1)
    again = mean_per_class(result.repeat_interleave(repeat), labels.repeat_interleave(repeat))
    assert again == pytest.approx(mean_per_class(result, labels))


# --------------------------------------------------------------------------------------- roles


def test_given_splits_keep_their_roles_and_unlabelled_images_have_none(make):
    rows = make("train", "val", "test", "other")
    parts = transfer.split_rows(rows, seed=0)
    for name in ("train", "val", "test"):
        ids = getattr(parts, name)
        assert len(ids) == 30 and (rows.splits[ids] == name).all()


@pytest.mark.parametrize("tested", ["val", "test"])
def test_without_three_splits_a_fifth_of_each_class_chooses_the_penalty(make, tested):
    rows = make("train", tested)
    parts = transfer.split_rows(rows, seed=0)
    assert (rows.splits[parts.test] == tested).all()
    assert rows.labels[parts.val].bincount().tolist() == [2, 2, 2]
    assert rows.labels[parts.train].bincount().tolist() == [8, 8, 8]
    assert (rows.splits[torch.cat([parts.train, parts.val])] == "train").all()
    assert transfer.split_rows(rows, seed=1).val.tolist() != parts.val.tolist()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.floats(0, 1), st.integers(0, 9))
def test_what_is_held_out_is_a_share_of_every_class(labels, share, seed):
    rows = dataclasses.make_dataclass("Rows", ["labels"])(torch.tensor(labels))
    ids = torch.arange(len(labels))
    held, rest = hold_out(rows, ids, share, seed)
    assert sorted(held.tolist() + rest.tolist()) == ids.tolist()
    for label in set(labels):
        count, out = labels.count(label), rows.labels[held].tolist().count(label)
        assert out == min(max(1, round(share * count)), count - 1)


@pytest.mark.parametrize("splits", [("train",), ("val", "test")])
def test_images_without_a_part_are_refused(make, job, splits):
    with pytest.raises(UserError, match=r"transfer\.toy: .* there are: "):
        transfer.run(ENCODERS, make(*splits), job)


# ----------------------------------------------------------------------------------- the choice


def scene(count: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    return Labelled(centres[labels] + torch.randn(count, 6, generator=generator), labels)


def reference(train: Labelled, l2: float) -> LogisticRegression:
    # theirs: C * sum of losses + |W|^2 / 2; ours: mean of losses + l2/2 |W|^2, so C = 1/(n*l2)
    model = LogisticRegression(C=1 / (len(train.labels) * l2), max_iter=20000, tol=1e-9)
    return model.fit(train.features.double().numpy(), train.labels.numpy())


def test_the_choice_and_the_last_fit_are_those_of_scikit_learn():
    train, val = scene(60, 0), scene(50, 1)
    grid = torch.logspace(-5, 1, 13).tolist()
    model, best = transfer.by_validation(train, val, 4, grid, iterations=1000)
    scores = [
        reference(train, l2).score(val.features.double().numpy(), val.labels.numpy()) for l2 in grid
    ]
    assert len(set(scores)) > 3
    assert best == max(l2 for l2, s in zip(grid, scores, strict=True) if s == max(scores))
    both = Labelled(
        torch.cat([train.features, val.features]), torch.cat([train.labels, val.labels])
    )
    test = scene(40, 2).features
    expected = reference(both, best).predict_proba(test.double().numpy())
    np.testing.assert_allclose(model(test).softmax(dim=1).detach().numpy(), expected, atol=2e-3)


def test_colours_are_classified_and_scores_do_not_depend_on_the_batch(make, job, monkeypatch):
    rows = make("train", "val", "test")
    result = transfer.run(ENCODERS, rows, job, l2_steps=7)
    assert result == {"transfer_toy_top1": 100.0, "transfer_toy_mean_per_class": 100.0}
    recorded = []
    monkeypatch.setattr(transfer, "by_validation", lambda *a: recorded.append(a) or original(*a))
    monkeypatch.setattr(features, "BATCH", 4)
    assert transfer.run(ENCODERS, rows, job) == result
    assert len(recorded[0][3]) == 45
    assert (min(recorded[0][3]), max(recorded[0][3])) == pytest.approx((1e-6, 1e5))


original = transfer.by_validation


def test_sgd_learns_from_both_splits_under_a_name_of_its_own(make, job):
    rows = make("train", "val", "test")
    some = transfer.SgdOptions(lr=3.0, batch=20, epochs=6, milestones=(5,))
    result = transfer.run(ENCODERS, rows, job, sgd={"toy": some, "other": transfer.SgdOptions()})
    assert result == {"transfer_toy_sgd_top1": 100.0, "transfer_toy_sgd_mean_per_class": 100.0}
    state = torch.load(next(job.work.glob("transfer-toy/step-*18.pt")), weights_only=True)
    # 60 labelled images of train and val: the last step is the 18th, at a tenth of 3 * 20 / 256
    assert state["state"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.3 * 20 / 256)


def test_of_equally_good_penalties_the_largest_is_taken():
    train, val = scene(60, 0), scene(1, 1)
    grid = [1e-3, 1e-2, 2e-2]
    scores = [reference(train, l2).predict(val.features.double().numpy()) for l2 in grid]
    assert len({int(score[0]) for score in scores}) == 1  # equally accurate
    _, best = transfer.by_validation(train, val, 4, grid, iterations=500)
    assert best == 2e-2
