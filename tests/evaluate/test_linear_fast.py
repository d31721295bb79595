import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.evaluate import features, linear_fast, logistic
from salmask.evaluate.features import Labelled
from salmask.params.encoder import EncoderConfig


def _scene(classes: int) -> Labelled:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (120,), generator=generator)
    centres = torch.randn(classes, 6, generator=generator)
    return Labelled(centres[labels] + torch.randn(120, 6, generator=generator), labels)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_fit_is_that_of_scikit_learn(classes, l2):
    train = _scene(classes)
    model = logistic.fit([train], classes, l2, iterations=500)
    # theirs: C * sum of losses + |W|^2 / 2; ours: mean of losses + l2/2 |W|^2, so C = 1/(n*l2)
    reference = LogisticRegression(C=1 / (120 * l2), max_iter=5000, tol=1e-8)
    features = train.features.numpy().astype(np.float64)
    expected = reference.fit(features, train.labels.numpy()).predict_proba(features)
    result = model(train.features).softmax(dim=1).detach().numpy()
    if classes == 2:
        # for two classes they penalise one vector w, ours two of w/2 each: |W|^2 is half
        reference = LogisticRegression(C=1 / (120 * l2 / 2), max_iter=5000, tol=1e-8)
        expected = reference.fit(features, train.labels.numpy()).predict_proba(features)
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_at_the_minimum_the_gradient_vanishes():
    train = _scene(4)
    model = logistic.fit([train], 4, 0.01, iterations=500)
    probability = model(train.features).softmax(dim=1).detach()
    error = (probability - nn.functional.one_hot(train.labels, 4)) / 120
    gradient = error.T @ train.features + 0.01 * model.weight.detach()
    assert gradient.abs().max() < 1e-3
    assert error.sum(0).abs().max() < 1e-3  # the bias is not penalised


class MeanColour(nn.Module):
    """Stands for a network: (B,3,H,W) -> (B,3), on an odd scale."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * torch.tensor([1e-3, 1.0, 1e3]) + 7


@pytest.fixture
def rows(make_manifest):
    """Three colours in three splits, and images without a label."""
    images = []
    for split in ("train", "val", "other"):
        for i in range(12):
            pixels = np.full((8, 8, 3), 100, np.uint8)
            pixels[..., i % 3] = 130 + 5 * i
            images.append((pixels, i % 3, split))
        images.append((np.zeros((8, 8, 3), np.uint8), -1, split))
    return make_manifest(images, ("red", "green", "blue"))


ENCODERS = {"trained": Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 8, None)).eval()}


@pytest.mark.parametrize("l2", [1e-4, (1e-4, 1e-2)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear_fast", {}),
        ("linear_fast_1views", {"views": 1, "images": "stream"}),
        ("linear_fast_3views", {"views": 3, "images": "resident"}),
    ],
)
def test_separable_colours_are_classified_in_every_split(rows, job, name, options, l2):
    result = linear_fast.run(ENCODERS, rows, job, l2=l2, **options)
    assert result == {f"{name}_top1": 100.0, f"other_{name}_top1": 100.0}


def test_the_penalty_is_the_one_under_which_held_out_labels_are_likeliest():
    train, held = _scene(3), _scene(5)  # unrelated labels: the largest penalty is best
    held = Labelled(held.features, held.labels % 3)
    grid = (1e-3, 1e-1, 10.0)
    scores = {}
    for l2 in grid:
        chances = logistic.fit([train], 3, l2, 500)(held.features).softmax(dim=1)
        scores[l2] = chances[torch.arange(120), held.labels].log().mean().item()
    chosen, model = logistic.best_l2(train, held, 3, grid, 500, linear_fast._minus_cross_entropy)
    assert chosen == max(scores, key=lambda l2: scores[l2]) == 10.0
    torch.testing.assert_close(
        model.weight, logistic.fit([train], 3, 10.0, 500).weight, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("views", [0, 2])
def test_a_penalty_is_chosen_on_held_out_images_then_fits_all(rows, job, views, monkeypatch):
    selections, fitted = [], []
    choose, fit = linear_fast.best_l2, linear_fast.fit

    def chosen(rest, held, classes, grid, iterations, score):
        selections.append((len(rest), len(held), grid))
        return 0.5, choose(rest, held, classes, grid, iterations, score)[1]

    def fits(train, classes, l2, iterations, start):
        fitted.append((len(train[0]), l2, start is not None))
        return fit(train, classes, l2, iterations, start)

    monkeypatch.setattr(linear_fast, "best_l2", chosen)
    monkeypatch.setattr(linear_fast, "fit", fits)
    linear_fast.run(ENCODERS, rows, job, l2=(0.1, 0.5, 1.0), views=views, images="resident")
    times = views or 1  # 12 labelled images of three classes: one of four is held out of each
    assert selections == [(9 * times, 3, (0.1, 0.5, 1.0))]
    assert fitted == [(12 * times, 0.5, True)]
    linear_fast.run(ENCODERS, rows, job, l2=0.1)
    assert len(selections) == 1 and fitted[1:] == [(12, 0.1, False)]


@pytest.mark.parametrize("images", ["stream", "resident"])
def test_views_differ_and_are_an_images_own_whatever_the_batch(rows, job, images, monkeypatch):
    encoder, ids = ENCODERS["trained"], rows.ids("train")
    whole = features.extract_views(encoder, rows, ids, 3, images, job, "train")
    assert whole.shape == (13, 3, 3)
    monkeypatch.setattr(features, "BATCH", 4)
    torch.testing.assert_close(
        features.extract_views(encoder, rows, ids, 3, images, job, "train"), whole
    )
    some = features.extract_views(encoder, rows, ids[5:7], 3, images, job, "train")
    torch.testing.assert_close(some, whole[5:7])


def test_without_labels_there_is_nothing_to_score(make_manifest, job):
    rows = make_manifest([(np.zeros((8, 8, 3), np.uint8), -1, s) for s in ("train", "val")])
    encoder = Encoder(MeanColour(), EncoderConfig(), InputSpec(8, 8, None)).eval()
    assert linear_fast.run({"trained": encoder}, rows, job) == {}


def test_the_minimum_does_not_depend_on_blocks(monkeypatch):
    train = _scene(4)
    some = train.pick(torch.arange(0, 120, 2))
    rest = Labelled(train.features[1::2], train.labels[1::2])
    whole = logistic.fit([train], 4, 0.01, iterations=500)
    monkeypatch.setattr(logistic, "_ROWS", 7)
    parts = logistic.fit([some, rest], 4, 0.01, iterations=500)
    exact = _minimum(train, 0.01)
    for model in (whole, parts):
        excess = _loss(model.double(), train, 0.01) - _loss(exact, train, 0.01)
        assert 0 <= excess.item() < 1e-6
    chances = [model(train.features.double()).softmax(dim=1) for model in (whole, parts)]
    torch.testing.assert_close(*chances, atol=1e-3, rtol=0)


def _loss(model: nn.Linear, train: Labelled, l2: float) -> torch.Tensor:
    fit = nn.functional.cross_entropy(model(train.features.double()), train.labels)
    return fit + 0.5 * l2 * model.weight.square().sum()


def _minimum(train: Labelled, l2: float) -> nn.Linear:
    """The classifier at the minimum, fitted in float64."""
    model = nn.Linear(6, 4, dtype=torch.float64)
    options = {"tolerance_grad": 1e-12, "tolerance_change": 1e-15, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2000, **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _loss(model, train, l2)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model
