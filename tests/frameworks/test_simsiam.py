import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from salmask import frameworks
from salmask.frameworks.simsiam import Framework
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.shapes import Views
from salmask.train.optim import build_optimizer
from tests.helpers.frameworks_by_loops import (
    BACKWARDS,
    BATCH,
    ENCODER,
    FEATURES,
    cosine,
    embed,
    halves,
    images,
    layout,
    learning,
    mixtures,
    shake,
    views,
)

DIM = 6
A, B, C, D, E = images(5)
BOTH = [(0, 1, 0.5), (1, 0, 0.5)]


def build(**options) -> Framework:
    torch.manual_seed(0)
    model = frameworks.build(
        Choice("simsiam", {"dim": DIM, "hidden": 4, "bn_group": 0} | options), ENCODER, BATCH
    )
    shake(model)
    return model.train()


SCENES = {
    "two views": views((A, B), BOTH),
    "each masks its own": views((A, B, C, D), [(0, 1, 0.5), (2, 3, 0.5)]),
    "maskings of each": views(
        (A, B, C, D, E), [(n, 1, 0.5) for n in (0, 2)] + [(n, 3, 0.5) for n in (4, 2)]
    ),
    "mixture": views((A, B), BOTH, mixed=mixtures(C)),
    "mixture without switch": views((A, B), BOTH, mixed=mixtures(C, switch=False)),
    "two mixtures": views((A, B), BOTH, mixed=mixtures(C, D)),
    "erased halves": views((A, B), BOTH, mixed=halves(C, D)),
    "masked and mixed": views((A, B, C, D), [(0, 1, 0.5), (2, 3, 0.5)], mixed=mixtures(E)),
}


def slow(model: Framework, batch: Views, group: int) -> float:
    projected = (model.encoder, model.projector)
    predicted = (*projected, model.predictor)
    total = 0.0
    for i, j, weight in batch.pairs:
        embeddings = embed(batch.images[i], *predicted, group=group)
        expected = embed(batch.images[j], *projected, group=group)
        total -= weight * sum(map(cosine, embeddings, expected)) / BATCH
    clean = embed(batch.images[1], *projected, group=group)
    for mixed in batch.mixed:
        embeddings = embed(mixed.images, *predicted, group=group)
        for rows, shares in mixed.positives:
            for i in range(BATCH):
                total -= float(shares[i]) * cosine(embeddings[i], clean[rows[i]]) / BATCH
    return total


@pytest.mark.parametrize(
    ("scene", "group"),
    [*((scene, 0) for scene in SCENES), *((scene, 2) for scene in ("two views", "mixture"))],
)
def test_the_loss_agrees_with_loops(scene, group):
    model = build(bn_group=group)
    expected = slow(model, SCENES[scene], group)
    assert model(SCENES[scene], 0.0)["loss"].item() == pytest.approx(expected, abs=1e-4)


def test_metrics_besides_the_loss():
    model = build()
    predicted = embed(A, model.encoder, model.projector, model.predictor)
    expected = embed(B, model.encoder, model.projector)
    metrics = model(SCENES["two views"], 0.0)
    similarity = sum(map(cosine, predicted, expected)) / BATCH
    assert metrics["positive_similarity"].item() == pytest.approx(similarity, abs=1e-5)
    unit = torch.nn.functional.normalize(torch.tensor(expected), dim=1)
    deviation = unit.var(dim=0, correction=0).sqrt().mean() * DIM**0.5
    assert metrics["spread"].item() == pytest.approx(deviation.item(), abs=1e-5)


def linear() -> Framework:
    """A SimSiam of two matrices: W, the identity, and a predictor that turns by 90 degrees."""
    model = build()
    model.encoder = nn.Flatten()
    model.projector, model.predictor = (nn.Linear(2, 2, bias=False) for _ in range(2))
    with torch.no_grad():
        model.projector.weight.copy_(torch.eye(2))
        model.predictor.weight.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    return model


PICTURES = (torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.6, 0.8]]]]))


def test_gradient_by_hand():
    """x1 = (1, 0), x2 = (0.6, 0.8), z = W x, p = R z.

    p1 = (0, 1), z2 = (0.6, 0.8): cos = 0.8, dcos/dp1 = z2 - 0.8 p1 = (0.6, 0); halved and negated
    (-0.3, 0); through R: (0, 0.3); times x1: [[0, 0], [0.3, 0]].
    p2 = (-0.8, 0.6), z1 = (1, 0): cos = -0.8, dcos/dp2 = z1 + 0.8 p2 = (0.36, 0.48); halved and
    negated (-0.18, -0.24); through R: (-0.24, 0.18); times x2: [[-0.144, -0.192], [0.108, 0.144]].
    """
    model = linear()
    loss = model(views(PICTURES, BOTH), 0.0)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * (0.8 - 0.8), abs=1e-6)
    expected = torch.tensor([[-0.144, -0.192], [0.408, 0.144]])
    torch.testing.assert_close(model.projector.weight.grad, expected)


def test_without_the_stop_gradient_the_gradient_would_differ():
    """cos(R z1, z2) = -cos(R z2, z1): the loss is 0 for every W, and so is its whole gradient."""
    model = linear()
    z1, z2 = (model.projector(x.flatten(1)) for x in PICTURES)
    sides = ((model.predictor(z1), z2), (model.predictor(z2), z1))
    loss = -sum(torch.cosine_similarity(p, z).mean() for p, z in sides) / 2
    loss.backward()
    torch.testing.assert_close(model.projector.weight.grad, torch.zeros(2, 2))


def test_targets_of_mixtures_have_no_gradient():
    """Only the mixed term has a weight, and only the mixed image gets its gradient."""
    clean, mixed = B.clone().requires_grad_(), C.clone().requires_grad_()
    build()(views((A, clean), [(0, 1, 0.0)], mixed=mixtures(mixed)), 0.0)["loss"].backward()
    assert clean.grad is None and mixed.grad.flatten(1).any(1).all()


@pytest.mark.parametrize("scene", ["two views", "masked and mixed"])
def test_encoder_projector_and_predictor_learn(scene):
    model = build()
    model(SCENES[scene], 0.0)["loss"].backward()
    assert learning(model) == {"encoder", "projector", "predictor"}


def test_a_step_changes_nothing_but_running_statistics():
    model = build()
    before = dict(copy.deepcopy(model).named_parameters())
    model(SCENES["each masks its own"], 0.0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_mixtures_use_the_second_view_in_reverse_order():
    """The tests above therefore test pi(i) = B-1-i, and no other permutation."""
    (mixed,) = mixtures(C)
    assert mixed.positives[1][0].tolist() == BACKWARDS.tolist() == [3, 2, 1, 0]


# ---------------------------------------------------------------------------------- initial state


@pytest.mark.parametrize("layers", [2, 3])
def test_the_projectors_last_norm_is_not_affine(layers):
    first = [f"{FEATURES}>{DIM}", "norm", "relu"]
    middle = [f"{DIM}>{DIM}", "norm", "relu"] * (layers - 2)
    assert layout(build(layers=layers).projector) == [*first, *middle, f"{DIM}>{DIM}", "plain"]


def test_the_predictor_is_a_bottleneck():
    assert layout(build().predictor) == [f"{DIM}>4", "norm", "relu", f"4>{DIM}+"]


def test_residual_blocks_begin_as_the_identity():
    encoder = frameworks.build(
        Choice("simsiam", {"dim": DIM, "hidden": 4, "bn_group": 0}), ENCODER, BATCH
    ).encoder
    blocks = [m for m in encoder.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 4 and not any(block.bn2.weight.any() for block in blocks)


def test_only_the_predictor_keeps_its_rate():
    model = build()
    groups = build_optimizer(model, TrainConfig()).param_groups
    constant = {id(p) for group in groups if group["constant"] for p in group["params"]}
    assert constant == {id(p) for p in model.predictor.parameters()}


def test_the_wiring():
    wiring = build().wiring
    assert (wiring.label, wiring.roles, wiring.weight) == ("SimSiam", "both", 0.5)
    assert not wiring.hard_negatives
