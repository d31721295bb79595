import copy

import pytest
import torch
from by_loops import (
    BATCH,
    ENCODER,
    FEATURES,
    Vectors,
    cosine,
    embed,
    halves,
    images,
    layout,
    learning,
    mixtures,
    shake,
    surprise,
    views,
)

from salmask.frameworks.simclr import Framework
from salmask.shapes import Views

DIM = 6
A, B, C, D, E = images(5)


def build(**options) -> Framework:
    torch.manual_seed(0)
    model = Framework(ENCODER, BATCH, 100, **({"dim": DIM, "hidden": 10, "bn_group": 0} | options))
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
    found, negatives = embedded(model, batch, group)
    total, hits = 0.0, []
    for online, target, weight in batch.pairs:
        sides = (found[online], found[target])
        rows = [(side, i) for side in (0, 1) for i in range(BATCH)]
        for side, i in rows:
            own = sides[side][i]
            positive = cosine(own, sides[1 - side][i]) / tau
            others = [cosine(own, sides[s][j]) / tau for s, j in rows if j != i]
            assert len(others) == 2 * BATCH - 2
            hits.append(positive > max(others))
            if side == 0:  # the row of the query, whose key was cut
                hard = [cosine(own, n[i]) / tau for n in negatives.get(target, [])]
                others += [model.penalty * value for value in hard]
            total += weight * surprise(positive, others) / len(rows)
    for mixed in batch.mixed:  # a forward of its own
        made = embed(mixed.images, model.encoder, model.projector, group=group)
        for rows, shares in mixed.positives:
            for i in range(BATCH):
                logits = [cosine(made[i], key) / tau for key in found[1]]
                positive = logits.pop(int(rows[i]))
                total += float(shares[i]) * surprise(positive, logits) / BATCH
    return total, sum(hits[: 2 * BATCH]) / (2 * BATCH)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("group", [0, 2])
def test_loss_and_accuracy_agree_with_loops(scene, group):
    batch, options = SCENES[scene]
    model = build(bn_group=group, **options)
    loss, accuracy = slow(model, batch, group)
    seen = model(batch, 0.0)
    assert seen["loss"].item() == pytest.approx(loss, rel=1e-4)
    assert seen["accuracy"].item() == pytest.approx(accuracy)
    assert ("negative_similarity" in seen) is bool(batch.negatives)


def test_similarities_are_means_over_the_first_comparison():
    batch, _ = SCENES["two of another penalty"]
    model = build()
    found, negatives = embedded(model, batch, 0)
    seen = model(batch, 0.0)
    positive = sum(map(cosine, *found)) / BATCH
    negative = sum(sum(map(cosine, found[0], many)) for many in negatives[1]) / (2 * BATCH)
    assert seen["positive_similarity"].item() == pytest.approx(positive, abs=1e-5)
    assert seen["negative_similarity"].item() == pytest.approx(negative, abs=1e-5)


@pytest.mark.parametrize("scene", ["two views", "hard negative", "mixture", "sum over maskings"])
def test_every_embedding_has_a_gradient(scene):
    """The loss changes along its gradient as fast as the gradient says: nothing is held fixed, not
    the hard negatives (Chin et al. 2024) nor the keys of mixtures."""
    batch, _ = SCENES[scene]
    model = build(temperature=0.5, penalty=5.0, bn_group=BATCH)
    model(batch, 0.0)["loss"].backward()
    assert learning(model) == {"encoder", "projector"}
    slope = torch.cat([p.grad.flatten() for p in model.parameters()])
    length = slope.norm().item()
    values = []
    for step in (2e-4, -2e-4):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for ours, theirs in zip(moved.parameters(), model.parameters(), strict=True):
                ours.add_(theirs.grad, alpha=step / length)
            values.append(moved(batch, 0.0)["loss"].item())
    assert (values[0] - values[1]) / 4e-4 == pytest.approx(length, rel=0.02)


def test_the_gradient_of_a_hard_negative_reaches_its_pixels():
    batch, _ = SCENES["hard negative"]
    negative = C.clone().requires_grad_()
    model = build(bn_group=BATCH)  # statistics of its own: no gradient comes by way of them
    model(views(batch.images, batch.pairs, negatives={1: (negative,)}), 0.0)["loss"].backward()
    assert negative.grad.flatten(1).any(1).all()


def test_everything_is_embedded_in_one_forward():
    """With one batch-norm group, the hard negatives change what the views' statistics are."""
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
    wanted = [f"{FEATURES}>10", "norm", "relu", f"10>{DIM}", "norm"]
    assert layout(build().projector) == wanted
    assert layout(build(hidden=None).projector)[0] == f"{FEATURES}>{FEATURES}"


def test_masks_are_told_what_it_compares():
    wiring = build().wiring
    assert (wiring.name, wiring.roles, wiring.weight) == ("simclr", "pairs", 1.0)
    assert wiring.hard_negatives
