import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from salmask.config import EncoderConfig
from salmask.encoder_file import Encoder, InputSpec
from salmask.evaluate import linear_fast, logistic
from salmask.evaluate.features import Labelled


def _scene(classes: int) -> Labelled:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (120,), generator=generator)
    centres = torch.randn(classes, 6, generator=generator)
    return Labelled(centres[labels] + torch.randn(120, 6, generator=generator), labels)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_fit_is_that_of_scikit_learn(classes, l2):
    train = _scene(classes)
    model = logistic.fit(train, classes, l2, iterations=500)
    # theirs: C * sum of losses + |W|^2 / 2; ours: mean of losses + l2/2 |W|^2, so C = 1/(n*l2)
    reference = LogisticRegression(C=1 / (120 * l2), max_iter=5000, tol=1e-8)
    features = train.features.numpy().astype(np.float64)
    wanted = reference.fit(features, train.labels.numpy()).predict_proba(features)
    found = model(train.features).softmax(dim=1).detach().numpy()
    if classes == 2:
        # for two classes they penalise one vector w, ours two of w/2 each: |W|^2 is half
        reference = LogisticRegression(C=1 / (120 * l2 / 2), max_iter=5000, tol=1e-8)
        wanted = reference.fit(features, train.labels.numpy()).predict_proba(features)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_at_the_minimum_the_gradient_vanishes():
    train = _scene(4)
    model = logistic.fit(train, 4, 0.01, iterations=500)
    probability = model(train.features).softmax(dim=1).detach()
    error = (probability - nn.functional.one_hot(train.labels, 4)) / 120
    gradient = error.T @ train.features + 0.01 * model.weight.detach()
    assert gradient.abs().max() < 1e-3
    assert error.sum(0).abs().max() < 1e-3  # the bias is not penalised


class MeanColour(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,3), on an odd scale."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * torch.tensor([1e-3, 1.0, 1e3]) + 7


def test_separable_colours_are_told_apart_in_every_split(make_manifest, job):
    images = []
    for split in ("train", "val", "other"):
        for i in range(12):
            pixels = np.full((8, 8, 3), 100, np.uint8)
            pixels[..., i % 3] = 130 + 5 * i
            images.append((pixels, i % 3, split))
        images.append((np.zeros((8, 8, 3), np.uint8), -1, split))
    rows = make_manifest(images, ("red", "green", "blue"))
    encoder = Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 8, None)).eval()
    found = linear_fast.run({"trained": encoder}, rows, job)
    assert found == {"linear_fast_top1": 100.0, "other_linear_fast_top1": 100.0}


def test_without_labels_there_is_nothing_to_score(make_manifest, job):
    rows = make_manifest([(np.zeros((8, 8, 3), np.uint8), -1, s) for s in ("train", "val")])
    encoder = Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 8, None)).eval()
    assert linear_fast.run({"trained": encoder}, rows, job) == {}
