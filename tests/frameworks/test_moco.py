import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salmask import frameworks
from salmask.config import Choice, EncoderConfig
from salmask.errors import UserError
from salmask.frameworks.moco import Framework
from salmask.shapes import Views

ENCODER = EncoderConfig("resnet10", width=4, stem="small2")
BATCH, QUEUE, DIM = 4, 8, 6


def build(seed: int = 0, **options) -> Framework:
    """A tiny MoCo whose key encoder already differs from its query encoder."""
    torch.manual_seed(seed)
    small = {"dim": DIM, "hidden": 10, "queue": QUEUE, "bn_group": 0, "momentum": 0.9}
    model = Framework(ENCODER, BATCH, 100, **(small | options))
    with torch.no_grad():
        for parameter in (*model.encoder.parameters(), *model.projector.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def views(seed: int, negative: bool = False, shuffle: list[int] | None = None) -> Views:
    generator = torch.Generator().manual_seed(seed)
    query, key, hard = (torch.randn(BATCH, 3, 16, 16, generator=generator) for _ in range(3))
    order = torch.tensor(shuffle or range(BATCH))
    return Views(query, key, hard if negative else None, order)


def followed(model: Framework) -> tuple[nn.Module, nn.Module]:
    """Copies of key encoder and key projector after the momentum update, by the formula."""
    pairs = (
        (copy.deepcopy(model.key_encoder), model.encoder),
        (copy.deepcopy(model.key_projector), model.projector),
    )
    with torch.no_grad():
        for follower, leader in pairs:
            for theirs, ours in zip(follower.parameters(), leader.parameters(), strict=True):
                theirs.copy_(model.momentum * theirs + (1 - model.momentum) * ours)
    return pairs[0][0], pairs[1][0]


def keys_of(model: Framework, images: torch.Tensor) -> torch.Tensor:
    encoder, projector = followed(model)
    with torch.no_grad():
        return F.normalize(projector(encoder(images)), dim=1)


def test_the_key_encoder_follows_by_the_momentum_formula():
    model = build()
    encoder, projector = followed(model)
    model(views(0), 0.0)
    for ours, wanted in ((model.key_encoder, encoder), (model.key_projector, projector)):
        for a, b in zip(ours.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_the_query_encoder_does_not_move_by_itself():
    model = build()
    before = copy.deepcopy(dict(model.encoder.named_parameters()))
    model(views(0), 0.0)
    assert all(torch.equal(p, before[n]) for n, p in model.encoder.named_parameters())


def test_the_queue_wraps_around_and_replaces_the_oldest():
    model = build()
    assert model.cursor == 0
    for step, (replaced, kept, cursor) in enumerate(
        [
            (slice(0, 4), slice(4, 8), 4),
            (slice(4, 8), slice(0, 4), 0),
            (slice(0, 4), slice(4, 8), 4),
        ]
    ):
        before, batch = model.queue.clone(), views(step)
        keys = keys_of(model, batch.key)
        model(batch, 0.0)
        torch.testing.assert_close(model.queue[:, replaced], keys.T)
        assert torch.equal(model.queue[:, kept], before[:, kept])
        assert model.cursor == cursor
        torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(QUEUE))


def test_hard_negatives_never_enter_the_queue():
    with_it, without = build(), build()
    with_it(views(0, negative=True), 0.0)
    without(views(0), 0.0)
    assert torch.equal(with_it.queue, without.queue)
    assert torch.equal(with_it.cursor, without.cursor)


def naive_loss(model: Framework, batch: Views) -> tuple[float, float]:
    """Loss and accuracy by loops, on what the queue holds before the step."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        query = F.normalize(twin.projector(twin.encoder(batch.query)), dim=1).tolist()
    encoder, projector = followed(model)

    def embed(images: torch.Tensor) -> list[list[float]]:
        with torch.no_grad():
            return F.normalize(projector(encoder(images)), dim=1).tolist()

    keys = embed(batch.key)
    negatives = None if batch.negative is None else embed(batch.negative)
    queue = model.queue.T.tolist()

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    total, hits = 0.0, 0
    for i in range(BATCH):
        positive = dot(query[i], keys[i]) / model.temperature
        others = [dot(query[i], k) / model.temperature for k in queue]
        hits += positive > max(others)
        if negatives is not None:
            others.append(model.penalty * dot(query[i], negatives[i]) / model.temperature)
        total += math.log(sum(math.exp(v) for v in [positive, *others])) - positive
    return total / BATCH, hits / BATCH


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.07}, {"penalty": 5.0}, {"head": "linear"}]
)
def test_loss_and_accuracy_agree_with_loops(negative, options):
    model = build(**options)
    for step in range(3):
        batch = views(step, negative)
        loss, accuracy = naive_loss(model, batch)
        seen = model(batch, 0.0)
        assert seen["loss"].item() == pytest.approx(loss, rel=1e-4)
        assert seen["accuracy"].item() == pytest.approx(accuracy)
        assert ("negative_similarity" in seen) is negative


def test_a_hard_negative_only_adds_to_the_loss():
    with_it = build()(views(0, negative=True), 0.0)
    without = build()(views(0), 0.0)
    assert with_it["loss"] > without["loss"]
    assert torch.equal(with_it["accuracy"], without["accuracy"])


@pytest.mark.parametrize("negative", [False, True])
def test_only_the_query_side_learns(negative):
    model = build()
    model(views(0, negative), 0.0)["loss"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.projector.parameters())
    for module in (model.key_encoder, model.key_projector):
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("shuffle", [[0, 1, 2, 3], [2, 0, 3, 1], [1, 2, 3, 0]])
def test_shuffling_forms_the_keys_groups_and_is_undone(shuffle):
    model = build(bn_group=2)
    batch = views(0, shuffle=shuffle)
    encoder, projector = followed(model)
    wanted: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for group in (shuffle[:2], shuffle[2:]):  # batch norm sees these two at a time
            embedded = F.normalize(projector(encoder(batch.key[group])), dim=1)
            wanted |= dict(zip(group, embedded, strict=True))
    model(batch, 0.0)
    expected = torch.stack([wanted[i] for i in range(BATCH)])
    torch.testing.assert_close(model.queue[:, :BATCH].T, expected, atol=1e-5, rtol=1e-4)


def test_with_one_group_the_shuffle_does_not_matter():
    queues = []
    for shuffle in ([0, 1, 2, 3], [3, 1, 0, 2]):
        model = build()
        model(views(0, shuffle=shuffle), 0.0)
        queues.append(model.queue)
    torch.testing.assert_close(*queues, atol=1e-5, rtol=1e-4)


def test_before_training_the_key_encoder_is_a_copy():
    torch.manual_seed(0)
    model = Framework(ENCODER, BATCH, 100, dim=DIM, hidden=10, queue=QUEUE, bn_group=0)
    for ours, theirs in (
        (model.encoder, model.key_encoder),
        (model.projector, model.key_projector),
    ):
        pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(QUEUE))


def test_the_heads_are_those_of_v2_and_v1():
    assert [type(m) for m in build().projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert build().projector[0].weight.shape == (10, 32)
    linear = build(head="linear").projector
    assert isinstance(linear, nn.Linear) and linear.weight.shape == (DIM, 32)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"queue": 10}, r"queue: 10 .*train\.batch \(4\).*choose 8"),
        ({"queue": 3}, r"queue: 3 .*choose 4"),
        ({"bn_group": 3}, r"bn_group: 3 does not divide train\.batch \(4\)"),
        ({"quue": 8}, "quue: no such key"),
        ({"head": "deep"}, "'mlp' or 'linear'.*'deep'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        frameworks.build(Choice("moco", options), ENCODER, BATCH, 100)


def test_an_unknown_framework_lists_those_there_are():
    with pytest.raises(UserError, match=r"no `moc` here; choose from .*moco"):
        frameworks.build(Choice("moc", {}), ENCODER, BATCH, 100)
