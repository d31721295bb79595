import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salmask import frameworks
from salmask.frameworks.moco import Framework
from salmask.params.values import Choice
from salmask.shapes import Views
from tests.helpers.frameworks_by_loops import (
    BATCH,
    ENCODER,
    FEATURES,
    cosine,
    cross_entropy,
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

QUEUE, DIM = 16, 6


def build(seed: int = 0, **options) -> Framework:
    """A tiny MoCo whose key encoder already differs from its query encoder."""
    torch.manual_seed(seed)
    small = {"dim": DIM, "hidden": 10, "queue": QUEUE, "bn_group": 0, "momentum": 0.9}
    model = frameworks.build(Choice("moco", small | options), ENCODER, BATCH)
    shake(model.encoder, model.projector)
    return model.train()


def plain(seed: int = 0, **more) -> Views:
    return views(images(2, seed), [(0, 1, 1.0)], **more)


def with_negative(seed: int = 0, **more) -> Views:
    query, key, negative = images(3, seed)
    return views((query, key), [(0, 1, 1.0)], negatives={1: (negative,)}, **more)


def followed(model: Framework) -> tuple[nn.Module, nn.Module]:
    """Key encoder and key projector after the momentum update."""
    return (
        moved(model.key_encoder, model.encoder, model.momentum),
        moved(model.key_projector, model.projector, model.momentum),
    )


def keys_of(model: Framework, pictures: torch.Tensor) -> torch.Tensor:
    return F.normalize(torch.tensor(embed(pictures, *followed(model))), dim=1)


def step(model: Framework, batch: Views) -> dict[str, torch.Tensor]:
    """A training step without a backward pass; its metrics."""
    metrics = model(batch, 0.0)
    model.finish_step()
    return metrics


# ------------------------------------------------------------------------------------- the loss


def slow(model: Framework, batch: Views, group: int = 0) -> tuple[float, float]:
    """Loss, and accuracy of the first comparison, with the queue as it is before the step."""
    queue = model.queue.T.tolist()

    def logit(a: list[float], b: list[float]) -> float:
        return cosine(a, b) / model.temperature

    def query_of(pictures: torch.Tensor) -> list[list[float]]:
        return embed(pictures, model.encoder, model.projector, group=group)

    def key_of(pictures: torch.Tensor) -> list[list[float]]:
        return embed(pictures, *followed(model), group=group)

    total, hits = 0.0, []
    for online, target, weight in batch.pairs:
        queries, keys = query_of(batch.images[online]), key_of(batch.images[target])
        negatives = [key_of(n) for n in batch.negatives.get(target, ())]
        for i in range(BATCH):
            positive = logit(queries[i], keys[i])
            past = [logit(queries[i], k) for k in queue]
            hard = [model.penalty * logit(queries[i], n[i]) for n in negatives]
            total += weight * cross_entropy(positive, past + hard) / BATCH
            hits.append(positive > max(past))
    keys = key_of(batch.images[1])
    for mixed in batch.mixed:
        queries = query_of(mixed.images)
        for rows, shares in mixed.positives:
            for i in range(BATCH):
                positive = logit(queries[i], keys[rows[i]])
                past = [logit(queries[i], k) for k in queue]
                total += float(shares[i]) * cross_entropy(positive, past) / BATCH
    return total, sum(hits[:BATCH]) / BATCH


PICTURES = images(8)
A, B, C, D, E = PICTURES[:5]
BOTH = [(0, 1, 1.0), (1, 0, 1.0)]
SCENES = {
    "one direction": (views((A, B), [(0, 1, 1.0)]), {}),
    "the temperature of v1": (views((A, B), [(0, 1, 1.0)]), {"temperature": 0.07}),
    "a linear head": (views((A, B), [(0, 1, 1.0)]), {"head": "linear"}),
    "both directions": (views((A, B), BOTH), {"symmetric": True}),
    "both, masked": (views((A, B, C, D), [(0, 1, 1.0), (2, 3, 1.0)]), {"symmetric": True}),
    "hard negative": (views((A, B), [(0, 1, 1.0)], negatives={1: (C,)}), {}),
    "two of another penalty": (
        views((A, B), [(0, 1, 1.0)], negatives={1: (C, D)}),
        {"penalty": 5.0},
    ),
    "both with hard negatives": (
        views((A, B), BOTH, negatives={0: (C, E), 1: (D,)}),
        {"symmetric": True},
    ),
    "three queries, one key": (views((A, B, C, D), [(n, 1, 1 / 3) for n in (0, 2, 3)]), {}),
    "sum over maskings": (views((A, B, C, D, E), [(n, 1, 1.0) for n in (0, 2, 3, 4)]), {}),
    "mixture": (views((A, B), [(0, 1, 1.0)], mixed=mixtures(C)), {}),
    "mixture without switch": (views((A, B), [(0, 1, 1.0)], mixed=mixtures(C, switch=False)), {}),
    "two mixtures, both": (views((A, B), BOTH, mixed=mixtures(C, D)), {"symmetric": True}),
    "erased halves": (views((A, B), [(0, 1, 1.0)], mixed=halves(C, D)), {}),
}


@pytest.mark.parametrize(
    ("scene", "group"),
    [
        *((scene, 0) for scene in SCENES),
        *((scene, 2) for scene in ("one direction", "both with hard negatives", "mixture")),
    ],
)
def test_loss_and_accuracy_agree_with_loops(scene, group):
    batch, options = SCENES[scene]
    model = build(bn_group=group, **options)
    loss, accuracy = slow(model, batch, group)
    metrics = model(batch, 0.0)
    assert metrics["loss"].item() == pytest.approx(loss, rel=1e-4)
    assert metrics["accuracy"].item() == pytest.approx(accuracy)
    assert ("negative_similarity" in metrics) is bool(batch.negatives)


def test_the_loss_is_that_of_the_queue_before_the_step():
    model = build()
    for number in range(6):  # more steps than the queue has room for
        loss, _ = slow(model, plain(number))
        assert step(model, plain(number))["loss"].item() == pytest.approx(loss, rel=1e-4)


def test_similarities_are_means_over_the_first_comparison():
    model, batch = build(), with_negative()
    query = embed(batch.images[0], model.encoder, model.projector)
    key, negative = (embed(p, *followed(model)) for p in (batch.images[1], batch.negatives[1][0]))
    metrics = model(batch, 0.0)
    for name, other in (("positive_similarity", key), ("negative_similarity", negative)):
        expected = sum(map(cosine, query, other)) / BATCH
        assert metrics[name].item() == pytest.approx(expected, abs=1e-5)


def test_losses_compare_without_a_step():
    model = build()
    before = copy.deepcopy(model)
    metrics = model.losses(with_negative())
    assert equal(model.key_encoder, before.key_encoder)
    assert torch.equal(model.queue, before.queue) and model.cursor == 0
    model.momentum = 1.0  # so that a step keeps the key encoder
    torch.testing.assert_close(metrics, model(with_negative(), 0.0))


def test_a_hard_negative_only_adds_to_the_loss():
    with_it, without = (build()(batch, 0.0) for batch in (with_negative(), plain()))
    assert with_it["loss"] > without["loss"]
    assert torch.equal(with_it["accuracy"], without["accuracy"])


@pytest.mark.parametrize(
    "scene", ["a linear head", "both with hard negatives", "two mixtures, both"]
)
def test_only_the_query_side_learns(scene):
    batch, options = SCENES[scene]
    model = build(**options)
    model(batch, 0.0)["loss"].backward()
    assert learning(model) == {"encoder", "projector"}
    for module in (model.key_encoder, model.key_projector):
        assert not any(p.requires_grad for p in module.parameters())


# ------------------------------------------------------------------- the key encoder and its queue


def test_the_key_encoder_follows_by_the_momentum_formula():
    model = build()
    encoder, projector = followed(model)
    model(plain(), 0.0)
    assert equal(model.key_encoder, encoder) and equal(model.key_projector, projector)


def test_the_query_encoder_does_not_move_by_itself():
    model = build()
    before = copy.deepcopy(model)
    model(plain(), 0.0)
    assert equal(model.encoder, before.encoder) and equal(model.projector, before.projector)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_queue_wraps_around_and_replaces_the_oldest(symmetric):
    model = build(symmetric=symmetric)
    pairs, count = (BOTH, 2 * BATCH) if symmetric else ([(0, 1, 1.0)], BATCH)
    for number in range(2 * QUEUE // count + 1):
        start = number * count % QUEUE
        assert model.cursor == start
        before, batch = model.queue.clone(), views(images(2, number), pairs)
        expected = [keys_of(model, batch.images[view]) for view in batch.targets]
        step(model, batch)
        before[:, start : start + count] = torch.cat(expected).T  # in the order of the views
        torch.testing.assert_close(model.queue, before, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(QUEUE))


@pytest.mark.parametrize("symmetric", [False, True])
def test_further_target_views_do_not_enter_the_queue(symmetric):
    """With both directions, every view of MSCN is a target, but only 2B of 4B keys enter."""
    targets = range(4) if symmetric else [1]
    pairs = [(i, j, 0.1) for i in range(4) for j in targets if i != j]
    count = 2 * BATCH if symmetric else BATCH
    queue = 3 * count  # not a multiple of 4B
    model = build(symmetric=symmetric, queue=queue)
    for number in range(4):
        batch = views(images(4, number), pairs)
        expected = [keys_of(model, batch.images[view]) for view in ((0, 1) if symmetric else (1,))]
        step(model, batch)
        start = number * count % queue
        added = model.queue[:, start : start + count].T
        torch.testing.assert_close(added, torch.cat(expected), atol=1e-5, rtol=1e-4)
        assert model.cursor == (start + count) % queue


def test_hard_negatives_never_enter_the_queue():
    with_it, without = build(), build()
    step(with_it, with_negative())
    step(without, plain())
    assert torch.equal(with_it.queue, without.queue)
    assert with_it.cursor == without.cursor


def test_mixtures_never_enter_the_queue():
    with_it, without = build(), build()
    step(with_it, views((A, B), [(0, 1, 1.0)], mixed=mixtures(C)))
    step(without, views((A, B), [(0, 1, 1.0)]))
    assert torch.equal(with_it.queue, without.queue)


def test_key_and_hard_negative_are_two_forwards():
    """In one forward pass they would share batch statistics, which would change the keys."""
    near, far = (with_negative() for _ in range(2))
    far.negatives[1][0].mul_(50)
    queues = []
    for batch in (near, far):
        model = build()
        step(model, batch)
        queues.append(model.queue)
    assert torch.equal(*queues)


@pytest.mark.parametrize("shuffle", [[0, 1, 2, 3], [2, 0, 3, 1], [1, 2, 3, 0]])
def test_shuffling_forms_the_keys_groups_and_is_undone(shuffle):
    model = build(bn_group=2)
    batch = plain(shuffle=shuffle)
    parts = followed(model)
    keys: dict[int, list[float]] = {}
    for group in (shuffle[:2], shuffle[2:]):  # the groups of batch norm
        keys |= dict(zip(group, embed(batch.images[1][group], *parts), strict=True))
    step(model, batch)
    expected_values = F.normalize(torch.tensor([keys[i] for i in range(BATCH)]), dim=1)
    torch.testing.assert_close(model.queue[:, :BATCH].T, expected_values, atol=1e-5, rtol=1e-4)


def test_hard_negatives_have_groups_of_their_own():
    order = [2, 0, 3, 1]
    model, batch = build(bn_group=2), with_negative(negative_shuffle=order)
    parts = followed(model)
    negatives: dict[int, list[float]] = {}
    for group in (order[:2], order[2:]):
        pictures = batch.negatives[1][0][group]
        negatives |= dict(zip(group, embed(pictures, *parts), strict=True))
    queries = embed(batch.images[0], model.encoder, model.projector, group=2)
    expected = sum(cosine(queries[i], negatives[i]) for i in range(BATCH)) / BATCH
    assert model(batch, 0.0)["negative_similarity"].item() == pytest.approx(expected, abs=1e-5)


def test_each_order_changes_its_own_embeddings_only():
    def similarities(**orders):
        metrics = build(bn_group=2)(with_negative(**orders), 0.0)
        return metrics["positive_similarity"].item(), metrics["negative_similarity"].item()

    positive, negative = similarities()
    of_keys, of_negatives = ({name: [2, 0, 3, 1]} for name in ("shuffle", "negative_shuffle"))
    assert similarities(**of_keys)[0] != positive and similarities(**of_keys)[1] == negative
    assert similarities(**of_negatives)[0] == positive
    assert similarities(**of_negatives)[1] != negative


def test_with_one_group_the_shuffle_does_not_matter():
    queues = []
    for shuffle in ([0, 1, 2, 3], [3, 1, 0, 2]):
        model = build()
        step(model, plain(shuffle=shuffle))
        queues.append(model.queue)
    torch.testing.assert_close(*queues, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------- initial state


def test_before_training_the_key_encoder_is_a_copy():
    torch.manual_seed(0)
    model = frameworks.build(
        Choice("moco", {"dim": DIM, "hidden": 10, "queue": QUEUE, "bn_group": 0}), ENCODER, BATCH
    )
    for ours, theirs in (
        (model.encoder, model.key_encoder),
        (model.projector, model.key_projector),
    ):
        pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(QUEUE))


def test_the_heads_are_those_of_v2_and_v1():
    assert layout(build().projector) == [f"{FEATURES}>10+", "relu", f"10>{DIM}+"]
    assert layout(build(hidden=None).projector)[0] == f"{FEATURES}>{FEATURES}+"
    assert layout(build(head="linear").projector) == [f"{FEATURES}>{DIM}+"]


@pytest.mark.parametrize(
    ("options", "name", "roles"),
    [
        ({}, "MoCo v2", "query"),
        ({"head": "linear"}, "MoCo v1", "query"),
        ({"symmetric": True}, "symmetric MoCo v2", "both"),
    ],
)
def test_the_wiring(options, name, roles):
    wiring = build(**options).wiring
    assert (wiring.label, wiring.roles, wiring.weight) == (name, roles, 1.0)
    assert wiring.hard_negatives
