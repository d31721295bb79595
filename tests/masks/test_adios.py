import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmask import frameworks
from salmask.errors import UserError
from salmask.masks.adios import Masker, mean_entropy, unevenness
from salmask.masks.wiring import wire_mask
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.shapes import Pair, Views, Wiring

BATCH, SIDE, MASKS = 4, 16, 4
WIRINGS = {
    "moco": Wiring("moco", "moco v2", hard_negatives=True),
    "moco, symmetric": Wiring(
        "moco", "symmetric moco v2", roles="both", hard_negatives=True, published=False
    ),
    "simclr": Wiring("simclr", "simclr", roles="pairs", hard_negatives=True),
    "byol": Wiring("byol", "byol", roles="both", learned_masks="second_view"),
    "simsiam": Wiring("simsiam", "simsiam", roles="both", weight=0.5),
}
MOCO = WIRINGS["moco"]
FRAMEWORKS = ("moco", "simclr", "byol", "simsiam")
SHUFFLE = torch.tensor([[2, 0, 3, 1], [1, 0, 3, 2]])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair() -> Pair:
    return Pair(noise(BATCH, 3, SIDE, SIDE, seed=1), noise(BATCH, 3, SIDE, SIDE, seed=2))


def build(wiring: Wiring = MOCO, **options) -> Masker:
    """A masker with distinct masks: its last layer has larger weights than at the start."""
    torch.manual_seed(0)
    masker = Masker(SIDE, wiring, **({"masks": MASKS, "base": 4} | options))
    torch.nn.init.normal_(masker.unet.divide.weight, std=2)
    return masker


def draws(epoch: int = 0, count: int = BATCH) -> Draws:
    return Draws.of(0, epoch, torch.arange(count))


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """x * (1 - m) of one image (3,H,W) and mask (H,W), pixel by pixel."""
    x, m = image.tolist(), mask.tolist()
    return torch.tensor(
        [[[x[c][i][j] * (1 - m[i][j]) for j in range(SIDE)] for i in range(SIDE)] for c in range(3)]
    )


# -------------------------------------------------------------------------------- masked views


def test_all_n_maskings_of_the_query_are_compared_with_the_key(pair):
    masker = build(single=False)
    views = masker.views(pair, draws(), SHUFFLE)
    assert views.images[1] is pair.key and len(views.images) == MASKS + 1
    assert views.pairs == tuple((n, 1, 1.0) for n in (0, 2, 3, 4))
    assert views.shuffle is SHUFFLE and not views.negatives and not views.mixed
    masks = masker(pair.query).detach()
    for number, place in enumerate((0, 2, 3, 4)):
        for image in range(BATCH):
            expected = hide(pair.query[image], masks[image, number])
            torch.testing.assert_close(views.images[place][image], expected)


def drawn_masks(hidden: Tensor, images: Tensor, masks: Tensor) -> list[int]:
    """For each image (B,3,H,W), the index of the mask in (B,N,H,W) that hides it."""
    indices = []
    for view, image, several in zip(hidden, images, masks, strict=True):
        same = [torch.allclose(view, image * (1 - mask), atol=1e-6) for mask in several]
        assert sum(same) == 1
        indices.append(same.index(True))
    return indices


def test_single_draws_one_of_the_masks_for_each_image_and_epoch():
    count = 64
    pair = Pair(noise(count, 3, SIDE, SIDE, seed=1), noise(count, 3, SIDE, SIDE, seed=2))
    masker = build(single=True)
    masks = masker(pair.query).detach()
    epochs = []
    for epoch in range(4):
        views = masker.views(pair, draws(epoch, count), SHUFFLE)
        assert len(views.images) == 2 and views.images[1] is pair.key
        assert views.pairs == ((0, 1, 1.0),)
        epochs.append(drawn_masks(views.images[0], pair.query, masks))
    for one, other in pairwise(epochs):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > count / 3
    often = torch.bincount(torch.tensor(epochs).flatten(), minlength=MASKS)
    assert (often > 40).all() and (often < 90).all()  # 64 each; four deviations are 28
    again = masker.views(pair, draws(0, count), SHUFFLE)
    assert drawn_masks(again.images[0], pair.query, masks) == epochs[0]


def test_a_masked_view_does_not_depend_on_its_batch(pair):
    masker, some = build(single=True), [3, 1]
    together = masker.views(pair, draws(), SHUFFLE).images[0]
    part = Pair(pair.query[some], pair.key[some])
    apart = masker.views(part, Draws.of(0, 0, torch.tensor(some)), SHUFFLE).images[0]
    torch.testing.assert_close(apart, together[some], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("name", WIRINGS)
def test_masked_views_and_their_comparisons(name, single, pair):
    masker, count = build(WIRINGS[name], single=single), 1 if single else MASKS
    views = masker.views(pair, draws(), SHUFFLE)
    weight = 0.5 if name == "simsiam" else 1.0
    both = name in ("byol", "simsiam", "moco, symmetric")
    assert sum(w for _, _, w in views.pairs) == weight * count * (1 + both)
    assert {w for _, _, w in views.pairs} == {weight}
    clean = {
        place: view
        for place, images in enumerate(views.images)
        for view in ("query", "key")
        if images is getattr(pair, view)
    }

    def source(place: int) -> str:
        if place in clean:
            return clean[place]
        for view in ("query", "key"):
            images = getattr(pair, view)
            kept = views.images[place] / images  # 1 - m, the same in all channels
            if torch.allclose(kept[:, :1].expand_as(kept), kept, atol=1e-3):
                return f"masked {view}"
        raise AssertionError("neither view")

    met = [(source(i), source(j)) for i, j, _ in views.pairs]
    forward, backward = [("masked query", "key")] * count, [("masked key", "query")] * count
    expected = forward + backward * both
    if name == "byol":  # only view 2 is masked, as query and as target
        expected = [("query", "masked key")] * count + backward
    assert sorted(met) == sorted(expected)
    assert len({pair[:2] for pair in views.pairs}) == len(views.pairs)
    if name != "byol":
        assert views.images[1] is pair.key


def test_simsiam_draws_the_mask_of_each_direction_by_itself():
    count = 64
    pair = Pair(*[noise(count, 3, SIDE, SIDE, seed=1)] * 2)
    masker = build(WIRINGS["simsiam"], single=True)
    views = masker.views(pair, draws(0, count), SHUFFLE)
    masks = masker(pair.query).detach()
    (first, _, _), (second, _, _) = views.pairs
    one, other = (drawn_masks(views.images[i], pair.query, masks) for i in (first, second))
    assert count / 2 < sum(a != b for a, b in zip(one, other, strict=True)) < count


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("name", WIRINGS)
def test_the_encoder_gives_the_masks_no_gradient(name, single, pair):
    masker = build(WIRINGS[name], single=single)
    views = masker.views(pair, draws(), SHUFFLE)
    assert not any(image.requires_grad for image in views.images)
    assert all(parameter.grad is None for parameter in masker.parameters())


# --------------------------------------------------------------------------- penalty and entropy


def flat(*shares: float, batch: int = 2, side: int = 3) -> Tensor:
    """Masks of constant shares: (batch,N,side,side)."""
    return torch.tensor(shares)[None, :, None, None].expand(batch, -1, side, side)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.5, 0.5), 2.0),
        ((0.5,) * 4, 4.0),
        ((0.25,) * 4, 4 * math.sqrt(2)),  # 1 / sin(pi/4)
        ((1 / 6, 5 / 6), 4.0),  # 1 / sin(pi/6) = 1 / sin(5 pi/6) = 2
        ((1 / 3, 0.5, 1 / 6), 2 / math.sqrt(3) + 1 + 2),
        ((0.99, 0.01), 2 / 0.0314107591),  # sin(0.01 pi)
    ],
)
def test_unevenness_by_hand(shares, expected):
    assert unevenness(flat(*shares)).item() == pytest.approx(expected, rel=1e-5)


def test_unevenness_is_of_an_image_and_of_a_mask_not_of_their_averages():
    half = torch.zeros(1, 1, 2, 2)
    half[..., 0] = 1  # a hard mask of half of the image
    assert unevenness(half).item() == pytest.approx(1.0, rel=1e-5)
    # two images with shares 1/6 and 5/6: 2 each, although the mean share is 1/2
    images = torch.cat([flat(1 / 6, batch=1), flat(5 / 6, batch=1)])
    assert unevenness(images).item() == pytest.approx(2.0, rel=1e-5)
    assert unevenness(flat(1 / 6, 5 / 6, batch=7)).item() == pytest.approx(4.0, rel=1e-5)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 5), st.floats(0.1, 8))
def test_unevenness_and_mean_entropy_follow_slow_references(seed, batch, count, sharpness):
    masks = (sharpness * noise(batch, count, 3, 4, seed=seed)).double().softmax(1)
    penalty = entropy = 0.0
    for image in masks.tolist():
        for mask in image:
            share = sum(map(sum, mask)) / 12
            penalty += 1 / math.sin(math.pi * share) / batch
            entropy -= sum(p * math.log(p) for row in mask for p in row) / 12 / batch
    assert unevenness(masks).item() == pytest.approx(penalty, rel=1e-6)
    assert mean_entropy(masks).item() == pytest.approx(entropy, rel=1e-6)
    assert unevenness(masks) >= count - 1e-9
    assert -1e-9 <= mean_entropy(masks) <= math.log(count) + 1e-9


def test_mean_entropy_by_hand():
    assert mean_entropy(flat(0.25, 0.25, 0.25, 0.25)).item() == pytest.approx(math.log(4))
    assert mean_entropy(flat(0.5, 0.5, 0.0)).item() == pytest.approx(math.log(2))
    assert mean_entropy(flat(1.0, 0.0)).item() == 0
    # one uncertain and one certain pixel: the mean, not the sum
    beside = torch.tensor([[[[0.5, 1.0]], [[0.5, 0.0]]]])
    assert mean_entropy(beside).item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (1 - 1e-7, 1e-7)])
def test_all_and_nothing_cost_much_but_not_infinitely(shares):
    masks = flat(*shares).clone().requires_grad_()
    cost = unevenness(masks)
    cost.backward()
    assert 1e5 < cost.item() < 1e6
    assert masks.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.9, 0.99, 0.9999])
def test_the_penalty_pushes_an_all_covering_mask_back(share):
    odds = math.log(share / (1 - share) * 3)
    logits = flat(odds, 0.0, 0.0, 0.0).clone().requires_grad_()
    unevenness(logits.softmax(1)).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


# ------------------------------------------------------------------------------- the masker's loss


def framework(name: str, **options):
    """A tiny framework whose batch norms see one view at a time."""
    torch.manual_seed(3)
    small = {"dim": 6, "hidden": 10, "bn_group": BATCH}
    small |= {"queue": 8} if name == "moco" else {}
    encoder = EncoderConfig("resnet10", width=8, stem="small2")
    return frameworks.build(Choice(name, small | options), encoder, BATCH).train()


def one_by_one(name: str, model, masks: tuple[Tensor, Tensor], pair: Pair) -> Tensor:
    """sum_n L_n of soft masks of query and key, one mask at a time."""
    total = torch.zeros(())
    for number in range(MASKS):
        query, key = (
            view * (1 - mask[:, number, None])
            for view, mask in zip((pair.query, pair.key), masks, strict=True)
        )
        if name == "byol":
            compared = [((pair.query, key), (0, 1)), ((key, pair.query), (0, 1))]
        else:
            compared = [((query, pair.key), (0, 1))]
        if name == "simsiam":
            compared.append(((key, pair.query), (0, 1)))
        weight = 0.5 if name == "simsiam" else 1.0
        for images, (i, j) in compared:
            views = Views(images, ((i, j, weight),), SHUFFLE)
            total = total + model.losses(views)["loss"]
    return total


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_encoders_loss_is_the_sum_over_masks(name, pair):
    model = framework(name)
    masker = build(model.wiring, single=False)
    masks = (masker(pair.query).detach(), masker(pair.key).detach())
    loss = model.losses(masker.views(pair, draws(), SHUFFLE))["loss"]
    torch.testing.assert_close(loss, one_by_one(name, model, masks, pair), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_maskers_gradient_is_minus_that_of_the_encoders_loss(name, pair):
    model = framework(name)
    masker = build(model.wiring, single=False, penalty=0.0)
    masker.loss(model.losses, pair, draws(), SHUFFLE)["masker_loss"].backward()
    ours = [parameter.grad.clone() for parameter in masker.parameters()]
    masker.zero_grad()
    one_by_one(name, model, (masker(pair.query), masker(pair.key)), pair).backward()
    for (label, parameter), gradient in zip(masker.named_parameters(), ours, strict=True):
        size = parameter.grad.abs().max().item()
        assert size > 0, label
        torch.testing.assert_close(gradient, -parameter.grad, atol=1e-3 * size, rtol=0)


@pytest.mark.parametrize("name", ["moco", "simclr", "simsiam"])  # byol's targets are masked too
def test_the_maskers_gradient_by_finite_differences(name, pair, monkeypatch):
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # no rounding to float32
    model = framework(name).double()
    masker = build(model.wiring, single=False, penalty=0.6, entropy=0.3).double()
    exact = Pair(pair.query.double(), pair.key.double())

    def loss() -> Tensor:
        return masker.loss(model.losses, exact, draws(), SHUFFLE)["masker_loss"]

    loss().backward()
    gradients = [parameter.grad for parameter in masker.parameters()]
    size = torch.sqrt(sum((g**2).sum() for g in gradients))
    step, values = 1e-7, []
    with torch.no_grad():
        for way in (1, -2):  # one step up, then two steps down
            for parameter, gradient in zip(masker.parameters(), gradients, strict=True):
                parameter.add_(way * step * gradient / size)
            values.append(loss().item())
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(size.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["moco", "simsiam"])
@pytest.mark.parametrize("single", [True, False])
def test_the_maskers_loss_is_penalty_and_entropy_over_all_masks_less_the_task(name, single, pair):
    model = framework(name)
    masker = build(model.wiring, single=single, penalty=0.7, entropy=0.4)
    metrics = masker.loss(model.losses, pair, draws(), SHUFFLE)
    with torch.no_grad():
        task = model.losses(masker.views(pair, draws(), SHUFFLE))["loss"]
        masks = masker(pair.query)  # all masks, not only the drawn ones
        if name == "simsiam":
            masks = torch.cat([masks, masker(pair.key)])
        expected = 0.7 * unevenness(masks) + 0.4 * mean_entropy(masks) - task
    torch.testing.assert_close(metrics["masker_loss"].detach(), expected, atol=1e-5, rtol=1e-5)
    largest = [max(mask.mean().item() for mask in image) for image in masks]
    assert metrics["mask_mean_max"].item() == pytest.approx(sum(largest) / len(masks), rel=1e-5)


# ----------------------------------------------------------------------------------- refusals


def test_a_single_mask_is_refused():
    with pytest.raises(UserError, match=r"mask\.masks: must be a whole number from 2 to 64, got 1"):
        wire_mask(Choice("adios", {"masks": 1}), MOCO, ViewConfig(size=SIDE, grid=1))


@pytest.mark.parametrize(
    ("option", "value"), [("base", 0), ("lr", -0.1), ("momentum", -0.5), ("weight_decay", -0.01)]
)
def test_invalid_numbers_are_refused(option, value):
    with pytest.raises(UserError, match=rf"mask\.{option}: .*{value}"):
        wire_mask(Choice("adios", {option: value}), MOCO, ViewConfig(size=SIDE, grid=1))


def test_the_wired_mask_has_its_masker():
    wired = wire_mask(Choice("adios", {}), MOCO, ViewConfig(size=SIDE, grid=1))
    assert isinstance(wired.masker, Masker) and wired.masker.count == 4
    assert not wired.reads_saliency and wired.extra_views == 0
