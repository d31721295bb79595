import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from salmask import frameworks
from salmask.encoders.norms import GroupedBatchNorm
from salmask.masks.adios import Masker
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice
from salmask.randomness import Draws
from salmask.shapes import Pair, Views
from salmask.train.adversary import Adversary, frozen
from salmask.train.batches import Batch

BATCH, SIDE, QUEUE = 8, 16, 32
FRAMEWORKS = ("moco", "simclr", "byol", "simsiam")
SHUFFLE = torch.tensor([[5, 2, 0, 7, 3, 1, 6, 4], [0, 4, 1, 5, 2, 6, 3, 7]])


def framework(name: str, group: int = 4):
    """A tiny framework, one step old: its followers differ, its norms and queue hold data."""
    torch.manual_seed(3)
    options = {"dim": 6, "hidden": 10, "bn_group": group}
    options |= {"queue": QUEUE} if name == "moco" else {}
    encoder = EncoderConfig("resnet10", width=8, stem="small2")
    model = frameworks.build(Choice(name, options), encoder, BATCH).train()
    model(Views((images(8), images(9)), ((0, 1, 1.0),), SHUFFLE), 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(seed: int) -> Tensor:
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def batch(step: int = 0) -> Batch:
    pair = Pair(images(10 + 2 * step), images(11 + 2 * step))
    return Batch(pair, Draws.of(0, step, torch.arange(BATCH)), SHUFFLE)


def masker(model, seed: int = 0, **options) -> Masker:
    torch.manual_seed(seed)
    made = Masker(SIDE, model.wiring, **({"base": 4, "single": False} | options))
    nn.init.normal_(made.unet.divide.weight)
    return made


def total(model, player: Masker, at: Batch) -> Tensor:
    """sum_n L_n, with a gradient for the encoder."""
    return model.losses(player.views(at.pair, at.draws, at.shuffle))["loss"]


def state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state of a framework: parameters, running statistics, queue and cursor."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def flags(model: nn.Module) -> list[object]:
    norms = [m.track_running_stats for m in model.modules() if isinstance(m, GroupedBatchNorm)]
    return [[p.requires_grad for p in model.parameters()], norms, model.training]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -------------------------------------------------------------------------- what a step changes


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_step_moves_the_masker_and_nothing_of_the_framework(name, single):
    model = framework(name)
    player = masker(model, single=single)
    adversary = Adversary(player)
    total(model, player, batch()).backward()  # gradients of the encoder's step
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    before, was, shapes = state(model), flags(model), copy.deepcopy(player.state_dict())
    assert any("running_mean" in key for key in before)
    for step in range(2):
        adversary.step(model, batch(step), 0.1)
    assert same(state(model), before)
    assert flags(model) == was
    for label, parameter in model.named_parameters():
        assert (label in gradients) == (parameter.grad is not None), label
        assert label not in gradients or torch.equal(parameter.grad, gradients[label]), label
    for label, tensor in player.state_dict().items():
        assert not torch.equal(tensor, shapes[label]), label


def test_a_frameworks_own_step_would_have_moved_its_statistics_and_queue():
    model = framework("moco")
    before = state(model)
    player, at = masker(model), batch()
    model(player.views(at.pair, at.draws, at.shuffle), 0.5)
    model.finish_step()
    moved = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert {"queue", "_extra_state"} < moved
    for part in ("running_mean", "running_var", "num_batches_tracked"):
        assert any(name.startswith("encoder") and name.endswith(part) for name in moved)
    assert any(name.startswith("key_encoder") and name.endswith("weight") for name in moved)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_interrupted_step_leaves_the_framework_as_it_was(name, monkeypatch):
    model = framework(name)
    player = masker(model)
    adversary = Adversary(player)
    before, was, weights = state(model), flags(model), copy.deepcopy(player.state_dict())
    losses = model.losses

    def fails(views: Views) -> dict[str, Tensor]:
        losses(views)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "losses", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        adversary.step(model, batch(), 1.0)
    assert same(state(model), before) and flags(model) == was
    assert same(player.state_dict(), weights)


# -------------------------------------------------------------------------------------- frozen


def norms() -> Iterator[nn.Module]:
    yield nn.BatchNorm2d(3)
    yield GroupedBatchNorm(3)
    yield GroupedBatchNorm(3, 2)
    yield nn.SyncBatchNorm(3)


@pytest.mark.parametrize(
    "norm", [*norms()], ids=lambda n: f"{type(n).__name__}{vars(n).get('group')}"
)
def test_frozen_norms_use_the_batch_and_keep_their_statistics(norm):
    if isinstance(norm, nn.SyncBatchNorm):  # works on GPUs only
        with frozen(norm):
            assert not norm.track_running_stats
        assert norm.track_running_stats
        return
    x = 3 * images(0) + 2
    before = state(norm)
    with frozen(norm):
        result = norm(x)
    assert same(state(norm), before)
    torch.testing.assert_close(norm(x), result)  # the same output, but running statistics change
    assert norm.num_batches_tracked == 1 and not same(state(norm), before)
    norm.eval()
    with frozen(norm):
        torch.testing.assert_close(norm(x), norm(x + 0))
        shift = norm.running_mean[:, None, None]
        scale = (norm.running_var + norm.eps).sqrt()[:, None, None]
        torch.testing.assert_close(norm(x), (x - shift) / scale)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_gradients_pass_through_what_is_frozen(name):
    model = framework(name)
    result = []
    for hold in (True, False):
        query = images(0).requires_grad_()
        views = Views((query, images(1)), ((0, 1, 1.0),), SHUFFLE)
        if hold:
            with frozen(model):
                model.losses(views)["loss"].backward()
            assert all(parameter.grad is None for parameter in model.parameters())
        else:
            model.losses(views)["loss"].backward()
        result.append(query.grad)
    assert result[0].abs().sum() > 0
    torch.testing.assert_close(*result)


def test_frozen_parameters_stay_frozen_after_an_error():
    model = framework("byol")
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert still and all(name.startswith("target") for name in still)
    with pytest.raises(KeyError), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == still


# ------------------------------------------------------------------------ masker and framework


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_masker_increases_the_loss_that_the_encoder_decreases(name):
    model, at = framework(name), batch()
    player = masker(model, penalty=0.0, momentum=0.0, weight_decay=0.0, lr=1.0)
    start = total(model, player, at)
    start.backward()
    slope = sum(p.grad.pow(2).sum() for p in model.parameters() if p.grad is not None)
    rate = 1e-3 / float(slope)  # a step that should change the loss by 0.001
    before = state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
    down = start.item() - total(model, player, at).item()
    assert down == pytest.approx(1e-3, rel=0.2)

    model.load_state_dict(before)
    weights = [p.detach().clone() for p in player.parameters()]
    adversary = Adversary(player)
    adversary.step(model, at, 1e-7)
    slope = sum(p.grad.pow(2).sum() for p in player.parameters())
    with torch.no_grad():
        for parameter, old in zip(player.parameters(), weights, strict=True):
            parameter.copy_(old)
    adversary.step(model, at, 1e-3 / float(slope))
    up = total(model, player, at).item() - start.item()
    # byol's gradient leaves out that its targets are masked as well (they are followers, detached)
    assert up > 0 if name == "byol" else up == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_masker_and_framework_have_the_same_loss(name, single):
    model, at = framework(name), batch()
    player = masker(model, single=single, penalty=0.0)
    expected = total(model, player, at)
    recorded = Adversary(player).step(model, at, 1.0)
    torch.testing.assert_close(-recorded["masker_loss"], expected.detach())
    assert not any(value.requires_grad for value in recorded.values())


def test_a_mask_that_covers_everything_is_pushed_back():
    model = framework("simclr")
    player = masker(model, penalty=1.0, lr=0.01)
    nn.init.zeros_(player.unet.divide.weight)
    with torch.no_grad():
        player.unet.divide.bias.copy_(torch.tensor([6.0, 0.0, 0.0, 0.0]))
    adversary, shares = Adversary(player), []
    for _ in range(20):
        shares.append(float(adversary.step(model, batch(), 1.0)["mask_mean_max"]))
    assert shares[0] > 0.99 and shares[-1] < 0.8


# --------------------------------------------------------------------------------- its optimizer


def gradients(model, player: Masker, at: Batch) -> list[Tensor]:
    """Gradients of the masker's loss, on copies."""
    model, player = copy.deepcopy(model), copy.deepcopy(player)
    player.zero_grad()
    player.loss(model.losses, at.pair, at.draws, at.shuffle)["masker_loss"].backward()
    return [parameter.grad for parameter in player.parameters()]


def test_it_descends_by_sgd_at_the_share_of_its_rate():
    model = framework("moco")
    player = masker(model, lr=0.4, momentum=0.5, weight_decay=0.1)
    adversary = Adversary(player)
    buffers = [torch.zeros_like(p) for p in player.parameters()]
    for step, share in enumerate((0.25, 1.0, 0.0)):
        expected = []
        for i, gradient in enumerate(gradients(model, player, batch(step))):
            old = list(player.parameters())[i].detach()
            buffers[i] = 0.5 * buffers[i] + gradient + 0.1 * old
            expected.append(old - share * 0.4 * buffers[i])
        adversary.step(model, batch(step), share)
        assert [group["lr"] for group in adversary.optimizer.param_groups] == [share * 0.4]
        for parameter, target in zip(player.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), target, atol=1e-5, rtol=1e-4)


def test_a_step_forgets_the_gradients_of_the_one_before():
    model = framework("simclr")
    one, two = (Adversary(masker(model)) for _ in range(2))
    for parameter in two.masker.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    for adversary in (one, two):
        adversary.step(model, batch(), 1.0)
    assert same(one.masker.state_dict(), two.masker.state_dict())


def test_its_state_resumes_bit_for_bit():
    model = framework("moco")
    alone = Adversary(masker(model, single=True))
    for step in range(2):
        alone.step(model, batch(step), 0.5)
    stream = io.BytesIO()
    torch.save({"adversary": alone.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, map_location="cpu", weights_only=True)["adversary"]
    resumed = Adversary(masker(model, seed=1, single=True))
    resumed.load_state_dict(saved)
    without_momentum = Adversary(masker(model, seed=1, single=True))
    without_momentum.masker.load_state_dict(saved["masker"])
    for step in range(2, 4):
        recorded = [a.step(model, batch(step), 0.25) for a in (alone, resumed, without_momentum)]
        assert same(recorded[0], recorded[1])
    assert same(alone.masker.state_dict(), resumed.masker.state_dict())
    assert not same(alone.masker.state_dict(), without_momentum.masker.state_dict())


def test_masks_have_the_same_bits_in_both_steps(monkeypatch):
    """The views of the encoder's step are made outside of autocast (see `Learner.step`)."""
    model, at = framework("simclr"), batch()
    player = masker(model)
    expected = player.views(at.pair, at.draws, at.shuffle)
    compared = []
    losses = model.losses

    def record(views: Views) -> dict[str, Tensor]:
        compared.append(views)
        return losses(views)

    monkeypatch.setattr(model, "losses", record)
    Adversary(player).step(model, at, 1.0, torch.autocast("cpu", torch.bfloat16))
    (views,) = compared
    for ours, theirs in zip(views.images, expected.images, strict=True):
        assert torch.equal(ours, theirs)


def test_it_computes_in_the_precision_of_the_run():
    model = framework("simclr")
    exact = Adversary(masker(model)).step(model, batch(), 1.0)
    rounded = Adversary(masker(model))
    recorded = rounded.step(model, batch(), 1.0, torch.autocast("cpu", torch.bfloat16))
    assert recorded["masker_loss"].item() == pytest.approx(exact["masker_loss"].item(), rel=0.05)
    assert recorded["masker_loss"] != exact["masker_loss"]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in rounded.masker.parameters())
