import copy

import pytest
import torch
import torch.nn.functional as F

from salmask import frameworks
from salmask.frameworks.simclr import Framework
from salmask.params.values import Choice
from salmask.shapes import Views
from tests.helpers.frameworks_by_loops import (
    BATCH,
    ENCODER,
    FEATURES,
    Vectors,
    cosine,
    cross_entropy,
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


def build(**options) -> Framework:
    torch.manual_seed(0)
    model = frameworks.build(
        Choice("simclr", {"dim": DIM, "hidden": 10, "bn_group": 0} | options), ENCODER, BATCH
    )
    shake(model)
    return model.train()


SCENES = {
    "two views": (views((A, B), [(0, 1, 1.0)]), {}),
    "temperature": (views((A, B), [(0, 1, 1.0)]), {"temperature": 0.5}),
    "hard negative": (views((A, B), [(0, 1, 1.0)], negatives={1: (C,)}), {}),
    "two of another penalty": (
        views((A, B), [(0, 1, 1.0)], negatives={1: (C, D)}),
        {"penalty": 5.0},
    ),
    "six pairs of four views": (
        views((A, B, C, D), [(i, j, 1 / 6) for j in range(4) for i in range(j)]),
        {},
    ),
    "sum over maskings": (views((A, B, C, D, E), [(n, 1, 1.0) for n in (0, 2, 3, 4)]), {}),
    "mixture": (views((A, B), [(0, 1, 1.0)], mixed=mixtures(C)), {}),
    "mixture without switch": (views((A, B), [(0, 1, 1.0)], mixed=mixtures(C, switch=False)), {}),
    "two mixtures": (views((A, B), [(0, 1, 1.0)], mixed=mixtures(C, D)), {}),
    "erased halves": (views((A, B), [(0, 1, 1.0)], mixed=halves(C, D)), {}),
}


def embedded(model: Framework, batch: Views, group: int) -> tuple[list[Vectors], dict]:
    """All views and hard negatives, from one forward."""
    together = [*batch.images, *(n for several in batch.negatives.values() for n in several)]
    rows = embed(torch.cat(together), model.encoder, model.projector, group=group)
    parts = [rows[n * BATCH : (n + 1) * BATCH] for n in range(len(together))]
    rest = iter(parts[len(batch.images) :])
    negatives = {view: [next(rest) for _ in several] for view, several in batch.negatives.items()}
    return parts[: len(batch.images)], negatives


def slow(model: Framework, batch: Views, group: int) -> tuple[float, float]:
    """Loss, and accuracy of the first comparison."""
    tau = model.temperature
    embeddings, negatives = embedded(model, batch, group)
    total, hits = 0.0, []
    for online, target, weight in batch.pairs:
        sides = (embeddings[online], embeddings[target])
        rows = [(side, i) for side in (0, 1) for i in range(BATCH)]
        for side, i in rows:
            own = sides[side][i]
            positive = cosine(own, sides[1 - side][i]) / tau
            others = [cosine(own, sides[s][j]) / tau for s, j in rows if j != i]
            assert len(others) == 2 * BATCH - 2
            hits.append(positive > max(others))
            if side == 0:  # the query: only it has hard negatives
                hard = [cosine(own, n[i]) / tau for n in negatives.get(target, [])]
                others += [model.penalty * value for value in hard]
            total += weight * cross_entropy(positive, others) / len(rows)
    for mixed in batch.mixed:  # a separate forward pass
        made = embed(mixed.images, model.encoder, model.projector, group=group)
        for rows, shares in mixed.positives:
            for i in range(BATCH):
                logits = [cosine(made[i], key) / tau for key in embeddings[1]]
                positive = logits.pop(int(rows[i]))
                total += float(shares[i]) * cross_entropy(positive, logits) / BATCH
    return total, sum(hits[: 2 * BATCH]) / (2 * BATCH)


@pytest.mark.parametrize(
    ("scene", "group"),
    [
        *((scene, 0) for scene in SCENES),
        *((scene, 2) for scene in ("two views", "two of another penalty", "mixture")),
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


def test_similarities_are_means_over_the_first_comparison():
    batch, _ = SCENES["two of another penalty"]
    model = build()
    embeddings, negatives = embedded(model, batch, 0)
    metrics = model(batch, 0.0)
    positive = sum(map(cosine, *embeddings)) / BATCH
    negative = sum(sum(map(cosine, embeddings[0], many)) for many in negatives[1]) / (2 * BATCH)
    assert metrics["positive_similarity"].item() == pytest.approx(positive, abs=1e-5)
    assert metrics["negative_similarity"].item() == pytest.approx(negative, abs=1e-5)


def graph(model: Framework, batch: Views) -> torch.Tensor:
    """The loss of a batch with one comparison, row by row, with gradients for all views."""
    tau, pictures = model.temperature, [*batch.images, *batch.negatives.get(1, ())]
    parts = [F.normalize(model.projector(model.encoder(p)), dim=1) for p in pictures]
    (first, second), rows = parts[:2], []
    for i in range(BATCH):
        rest = [side[j] for side in (first, second) for j in range(BATCH) if j != i]
        for own, other, hard in ((first, second, parts[2:]), (second, first, [])):
            logits = [own[i] @ other[i], *(own[i] @ row for row in rest)]
            logits += [model.penalty * own[i] @ negative[i] for negative in hard]
            rows.append(-torch.stack(logits).div(tau).log_softmax(0)[0] / (2 * BATCH))
    for mixed in batch.mixed:
        made = F.normalize(model.projector(model.encoder(mixed.images)), dim=1)
        for keys, shares in mixed.positives:
            for i in range(BATCH):
                logits = torch.stack([made[i] @ key for key in second]) / tau
                rows.append(-shares[i] * logits.log_softmax(0)[keys[i]] / BATCH)
    return torch.stack(rows).sum()


@pytest.mark.parametrize("scene", ["two views", "two of another penalty", "two mixtures"])
def test_the_gradient_is_that_of_the_whole_loss(scene):
    """Nothing is detached: neither hard negatives (Chin et al. 2024) nor keys of mixtures."""
    batch, options = SCENES[scene]
    # separate statistics, since `graph` embeds each view alone
    model = build(bn_group=BATCH, **options)
    twin = copy.deepcopy(model)
    metrics = model(batch, 0.0)["loss"]
    metrics.backward()
    expected = graph(twin, batch)
    expected.backward()
    assert metrics.item() == pytest.approx(expected.item(), rel=1e-5)
    assert learning(model) == {"encoder", "projector"}
    scale = max(p.grad.abs().max() for p in twin.parameters())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, atol=1e-5, rtol=0)


def test_the_gradient_of_a_hard_negative_reaches_its_pixels():
    batch, _ = SCENES["hard negative"]
    negative = C.clone().requires_grad_()
    model = build(bn_group=BATCH)  # separate statistics, so that no gradient flows through them
    model(views(batch.images, batch.pairs, negatives={1: (negative,)}), 0.0)["loss"].backward()
    assert negative.grad.flatten(1).any(1).all()


def test_everything_is_embedded_in_one_forward():
    """With one batch-norm group, the hard negatives change the statistics of the views."""
    similarities = []
    for factor in (1, 50):
        batch = views((A, B), [(0, 1, 1.0)], negatives={1: (C * factor,)})
        similarities.append(build()(batch, 0.0)["positive_similarity"])
    assert not torch.allclose(*similarities, atol=1e-3)


def test_a_step_changes_nothing_but_running_statistics():
    model = build()
    before = copy.deepcopy(model)
    model(SCENES["hard negative"][0], 0.0)
    known = dict(before.named_parameters())
    assert all(torch.equal(p, known[n]) for n, p in model.named_parameters())


def test_the_projector_has_a_norm_after_every_layer():
    expected = [f"{FEATURES}>10", "norm", "relu", f"10>{DIM}", "norm"]
    assert layout(build().projector) == expected
    assert layout(build(hidden=None).projector)[0] == f"{FEATURES}>{FEATURES}"


def test_the_wiring():
    wiring = build().wiring
    assert (wiring.label, wiring.roles, wiring.weight) == ("SimCLR", "pairs", 1.0)
    assert wiring.hard_negatives
