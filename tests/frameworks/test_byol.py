import copy
import math

import pytest
import torch
from torch import nn

from salmask import frameworks
from salmask.frameworks.byol import Framework
from salmask.params.values import Choice
from salmask.shapes import Mixed, Views
from tests.helpers.frameworks_by_loops import (
    BACKWARDS,
    BATCH,
    ENCODER,
    FEATURES,
    cosine,
    embed,
    equal,
    halves,
    images,
    layout,
    learning,
    mixtures,
    moved,
    shake,
    views,
)

DIM = 6
A, B, C, D, E = images(5)
BOTH = [(0, 1, 1.0), (1, 0, 1.0)]


def build(**options) -> Framework:
    """A tiny BYOL whose target already differs from its online network."""
    torch.manual_seed(0)
    small = {"dim": DIM, "hidden": 10, "bn_group": 0, "momentum": 0.9}
    model = frameworks.build(Choice("byol", small | options), ENCODER, BATCH)
    shake(model)
    return model.train()


SCENES = {
    "two views": views((A, B), BOTH),
    "each masks its own": views((A, B, C, D), [(0, 1, 1.0), (2, 3, 1.0)]),
    "ordered pairs of four views": views(
        (A, B, C, D), [(i, j, 1 / 12) for i in range(4) for j in range(4) if i != j]
    ),
    "maskings both ways": views(
        (A, B, C, D), [(0, n, 1.0) for n in (1, 2, 3)] + [(n, 0, 1.0) for n in (1, 2, 3)]
    ),
    "mixture": views((A, B), BOTH, mixed=mixtures(C)),
    "mixture without switch": views((A, B), BOTH, mixed=mixtures(C, switch=False)),
    "two mixtures": views((A, B), BOTH, mixed=mixtures(C, D)),
    "erased halves": views((A, B), BOTH, mixed=halves(C, D)),
}


def targets(model: Framework, momentum: float) -> tuple[nn.Module, nn.Module]:
    """The target network after an update with this momentum."""
    return (
        moved(model.target_encoder, model.encoder, momentum),
        moved(model.target_projector, model.projector, momentum),
    )


def distance(a: list[float], b: list[float]) -> float:
    """|| a/|a| - b/|b| ||^2, as Grill et al. 2020, Eq. 2 has it."""
    sizes = [math.sqrt(sum(v * v for v in one)) for one in (a, b)]
    return sum((x / sizes[0] - y / sizes[1]) ** 2 for x, y in zip(a, b, strict=True))


def slow(model: Framework, batch: Views, group: int) -> float:
    online = (model.encoder, model.projector, model.predictor)
    target = targets(model, model.momentum)
    total = 0.0
    for i, j, weight in batch.pairs:
        predicted = embed(batch.images[i], *online, group=group)
        expected = embed(batch.images[j], *target, group=group)
        total += weight * sum(map(distance, predicted, expected)) / BATCH
    clean = embed(batch.images[1], *target, group=group)
    for mixed in batch.mixed:
        predicted = embed(mixed.images, *online, group=group)
        for rows, shares in mixed.positives:
            for i in range(BATCH):
                total += float(shares[i]) * distance(predicted[i], clean[rows[i]]) / BATCH
    return total


@pytest.mark.parametrize(
    ("scene", "group"),
    [*((scene, 0) for scene in SCENES), *((scene, 2) for scene in ("two views", "mixture"))],
)
def test_the_loss_agrees_with_loops(scene, group):
    model = build(bn_group=group)
    expected = slow(model, SCENES[scene], group)
    metrics = model(SCENES[scene], 0.0)
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_mixtures_count_in_one_direction_only():
    """lambda d(pred(mix_i), z2_i) + (1 - lambda) d(pred(mix_i), z2_pi(i)), added to the loss."""
    model, share = build(momentum=1.0), 0.3
    without = model.losses(views((A, B), BOTH))["loss"].item()
    predicted = embed(C, model.encoder, model.projector, model.predictor)
    clean = embed(B, *targets(model, 1.0))
    mixture = sum(
        share * distance(predicted[i], clean[i])
        + (1 - share) * distance(predicted[i], clean[BATCH - 1 - i])
        for i in range(BATCH)
    )
    shares = torch.full((BATCH,), share)
    mixed = Mixed(C, ((torch.arange(BATCH), shares), (BACKWARDS, 1 - shares)))
    metrics = model(views((A, B), BOTH, mixed=(mixed,)), 0.0)["loss"]
    assert metrics.item() == pytest.approx(without + mixture / BATCH, rel=1e-4)


def test_metrics_besides_the_loss():
    model = build(momentum=1.0)
    predicted = embed(A, model.encoder, model.projector, model.predictor)
    expected = embed(B, *targets(model, 1.0))
    metrics = model(SCENES["two views"], 0.0)
    similarity = sum(map(cosine, predicted, expected)) / BATCH
    assert metrics["positive_similarity"].item() == pytest.approx(similarity, abs=1e-5)
    unit = torch.nn.functional.normalize(torch.tensor(expected), dim=1)
    deviation = unit.var(dim=0, correction=0).sqrt().mean() * DIM**0.5
    assert metrics["spread"].item() == pytest.approx(deviation.item(), abs=1e-5)


@pytest.mark.parametrize("scene", ["each masks its own", "two mixtures"])
def test_only_the_online_network_learns(scene):
    model = build()
    model(SCENES[scene], 0.0)["loss"].backward()
    assert learning(model) == {"encoder", "projector", "predictor"}
    for module in (model.target_encoder, model.target_projector):
        assert not any(p.requires_grad for p in module.parameters())


def test_gradient_by_hand():
    """x1 = (1, 0), x2 = (0.6, 0.8), W the identity, and a predictor R that turns by 90 degrees.

    d = 2 - 2 cos.
    p1 = R x1 = (0, 1), z2 = (0.6, 0.8): cos = 0.8, dcos/dp1 = z2 - 0.8 p1 = (0.6, 0);
    dd/dp1 = (-1.2, 0); through R: (0, 1.2); times x1: [[0, 0], [1.2, 0]].
    p2 = R x2 = (-0.8, 0.6), z1 = (1, 0): cos = -0.8, dcos/dp2 = z1 + 0.8 p2 = (0.36, 0.48);
    dd/dp2 = (-0.72, -0.96); through R: (-0.96, 0.72); times x2: [[-0.576, -0.768], [0.432, 0.576]].
    With a gradient through the targets, these terms would cancel (see SimSiam's test).
    """
    model = build()
    model.encoder, model.target_encoder = nn.Flatten(), nn.Flatten()
    model.projector, model.target_projector, model.predictor = (
        nn.Linear(2, 2, bias=False) for _ in range(3)
    )
    with torch.no_grad():
        model.projector.weight.copy_(torch.eye(2))
        model.target_projector.weight.copy_(torch.eye(2))
        model.predictor.weight.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    pictures = (torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.6, 0.8]]]]))
    loss = model.losses(views(pictures, BOTH))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(2 - 1.6 + 2 + 1.6, abs=1e-6)
    expected = torch.tensor([[-0.576, -0.768], [1.632, 0.576]])
    torch.testing.assert_close(model.projector.weight.grad, expected)
    assert model.target_projector.weight.grad is None


@pytest.mark.parametrize(
    ("progress", "momentum"),
    [(0.0, 0.9), (0.25, 1 - 0.1 * (math.sqrt(0.5) + 1) / 2), (0.5, 0.95), (1.0, 1.0)],
)
def test_the_target_follows_with_a_momentum_that_rises_to_1(progress, momentum):
    model = build()
    encoder, projector = targets(model, momentum)
    model(SCENES["two views"], progress)
    assert equal(model.target_encoder, encoder) and equal(model.target_projector, projector)
    assert not equal(model.target_encoder, targets(model, 0.5)[0])


def test_losses_compare_without_a_step():
    model = build()
    before = copy.deepcopy(model)
    model.losses(SCENES["two views"])
    assert equal(model.target_encoder, before.target_encoder)
    assert equal(model.target_projector, before.target_projector)


def test_before_training_the_target_is_a_copy():
    model = frameworks.build(
        Choice("byol", {"dim": DIM, "hidden": 10, "bn_group": 0}), ENCODER, BATCH
    )
    assert equal(model.target_encoder, model.encoder)
    assert equal(model.target_projector, model.projector)


def test_the_heads_are_bare_at_their_end():
    model = build()
    assert layout(model.projector) == [f"{FEATURES}>10", "norm", "relu", f"10>{DIM}+"]
    assert layout(model.predictor) == [f"{DIM}>10", "norm", "relu", f"10>{DIM}+"]
    assert layout(model.target_projector) == layout(model.projector)


def test_the_wiring():
    wiring = build().wiring
    assert (wiring.label, wiring.roles, wiring.weight) == ("BYOL", "both", 1.0)
    assert not wiring.hard_negatives
