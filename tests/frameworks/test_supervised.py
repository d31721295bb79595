"""Supervised training: its loss, its step and its metric, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from salmask import frameworks
from salmask.frameworks.supervised import Framework
from salmask.params.values import Choice
from tests.helpers.frameworks_by_loops import (
    BATCH,
    ENCODER,
    FEATURES,
    cross_entropy,
    embed,
    images,
    layout,
    learning,
    views,
)

CLASSES = 3
LABELS = torch.tensor([2, 0, 1, 0])
A, B = images(2)
QUERY = [(0, 1, 1.0)]


def build(**options) -> Framework:
    torch.manual_seed(0)
    choice = Choice("supervised", {"classes": CLASSES, "bn_group": 0} | options)
    return frameworks.build(choice, ENCODER, BATCH).train()


@pytest.mark.parametrize("group", [0, 2])
def test_loss_and_accuracy_agree_with_loops(group):
    model = build(bn_group=group)
    scores = embed(A, model.encoder, model.classifier, group=group)
    expected, correct = 0.0, 0
    for row, label in zip(scores, LABELS.tolist(), strict=True):
        others = [value for index, value in enumerate(row) if index != label]
        expected += cross_entropy(row[label], others) / BATCH
        correct += max(row) == row[label]
    metrics = model(views((A, B), QUERY, labels=LABELS), 0.0)
    assert set(metrics) == {"loss", "top1"}
    assert metrics["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert metrics["top1"].item() == pytest.approx(correct / BATCH)


def linear() -> Framework:
    """Two classes; the features are the two pixels, and the classifier is the identity."""
    model = build(classes=2)
    model.encoder, model.classifier = nn.Flatten(), nn.Linear(2, 2)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(2))
        model.classifier.bias.zero_()
    return model


def test_a_step_by_hand():
    """Scores (ln 3, 0) and (0, 0), both of class 1.

    Softmax: (3/4, 1/4) and (1/2, 1/2). Losses: ln 4 and ln 2, mean 1.5 ln 2. The first image is in
    the wrong class; the second has equal scores, of which the first wins: top1 is 0.
    Gradient by score: softmax - target, over 2: (3/8, -3/8) and (1/4, -1/4). By bias: the sum,
    (5/8, -5/8). By weight: only the first pixel of the first image is not 0, so (3/8 ln 3, 0) and
    (-3/8 ln 3, 0). A step of 0.8 changes the bias to (-0.5, 0.5), and both images are in their
    class: the scores of the first are ln 3 (1 - 0.3 ln 3) - 0.5 = 0.24 and
    0.3 (ln 3)^2 + 0.5 = 0.86.
    """
    model = linear()
    query = torch.tensor([[[[math.log(3), 0.0]]], [[[0.0, 0.0]]]])
    batch = views((query, torch.ones_like(query)), QUERY, labels=torch.tensor([1, 1]))
    metrics = model(batch, 0.0)
    assert metrics["loss"].item() == pytest.approx(1.5 * math.log(2))
    assert metrics["top1"] == 0
    optimizer = torch.optim.SGD(model.parameters(), 0.8)
    metrics["loss"].backward()
    change = 3 / 8 * math.log(3)
    expected = torch.tensor([[change, 0.0], [-change, 0.0]])
    torch.testing.assert_close(model.classifier.weight.grad, expected)
    optimizer.step()
    torch.testing.assert_close(model.classifier.bias.detach(), torch.tensor([-0.5, 0.5]))
    assert model(batch, 0.0)["top1"] == 1


def test_the_key_decides_nothing():
    results = []
    for key in (B, torch.full_like(B, torch.nan)):
        results.append(build()(views((A, key), QUERY, labels=LABELS), 0.0)["loss"])
    assert torch.equal(*results)


def test_encoder_and_classifier_learn():
    model = build()
    model(views((A, B), QUERY, labels=LABELS), 0.0)["loss"].backward()
    assert learning(model) == {"encoder", "classifier"}
    assert layout(model.classifier) == [f"{FEATURES}>{CLASSES}+"]


def test_views_without_labels_are_refused():
    with pytest.raises(ValueError, match="have no labels"):
        build()(views((A, B), QUERY), 0.0)


def test_the_wiring():
    wiring = build().wiring
    assert (wiring.label, wiring.roles, wiring.classes) == ("supervised training", "query", CLASSES)
    assert not wiring.hard_negatives and not wiring.target_encoder
