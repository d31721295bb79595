"""Properties of all frameworks, and their options in params.yaml."""

import inspect

import pytest
import torch
from torch import nn

from salmask import frameworks
from salmask.encoders.norms import GroupedBatchNorm
from salmask.errors import UserError
from salmask.params.values import Choice
from tests.helpers.frameworks_by_loops import BATCH, ENCODER, images, views

SMALL = {
    "moco": {"dim": 6, "hidden": 10, "queue": 8},
    "simclr": {"dim": 6, "hidden": 10},
    "byol": {"dim": 6, "hidden": 10},
    "simsiam": {"dim": 6, "hidden": 4},
    "supervised": {"classes": 3},
}
LABELS = torch.arange(BATCH) % 3
PAPER = {  # settings of the papers, as in docs/method.md
    "moco": {"dim": 128, "hidden": 2048, "temperature": 0.2, "queue": 65536, "momentum": 0.999},
    "simclr": {"dim": 128, "hidden": 2048, "temperature": 0.1},
    "byol": {"dim": 256, "hidden": 4096, "momentum": 0.996},
    "simsiam": {"dim": 2048, "hidden": 512, "layers": 3},
}


def build(name: str, **options):
    return frameworks.build(Choice(name, SMALL[name] | options), ENCODER, BATCH)


def test_every_framework_is_tested_here():
    assert set(frameworks.FRAMEWORKS) == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_the_wiring_is_that_of_the_built_framework(name, monkeypatch):
    wiring = build(name, bn_group=0).wiring
    monkeypatch.setattr(nn.Module, "__init__", None)  # builds no network
    assert frameworks.wiring_of(Choice(name, SMALL[name] | {"bn_group": 0}), BATCH) == wiring


@pytest.mark.parametrize("name", PAPER)
def test_defaults_are_the_papers(name):
    cls = type(build(name, bn_group=0))
    defaults = {k: p.default for k, p in inspect.signature(cls).parameters.items()}
    expected = PAPER[name] | {"bn_group": 32} | ({"penalty": 2.0} if "penalty" in defaults else {})
    assert {key: defaults[key] for key in expected} == expected
    assert ("penalty" in defaults) is (name in ("moco", "simclr"))


@pytest.mark.parametrize("name", SMALL)
def test_every_norm_has_the_groups_of_the_options(name):
    model = build(name, bn_group=2)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, GroupedBatchNorm) and m.group == 2 for m in norms)


@pytest.mark.parametrize("name", SMALL)
def test_groups_that_do_not_divide_the_batch_are_refused(name):
    message = r"framework\.bn_group: 3 does not divide train\.batch \(4\)"
    with pytest.raises(UserError, match=message):
        build(name, bn_group=3)


@pytest.mark.parametrize("name", SMALL)
def test_the_global_generator_alone_decides_the_weights(name):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(name, bn_group=0).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("name", SMALL)
def test_a_step_draws_nothing(name):
    """Draws from torch's generator would make a resumed run differ."""
    model = build(name, bn_group=0)
    before = torch.get_rng_state()
    model(views(images(2), [(0, 1, 1.0)], labels=LABELS), 0.0)["loss"].backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SMALL)
def test_losses_stay_float32_under_autocast(name):
    model = build(name, bn_group=0)
    batch = views(images(2), [(0, 1, 1.0)], labels=LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        metrics = model(batch, 0.0)
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert all(value.isfinite() and value.shape == () for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 10}, r"queue: 10 .*multiple of train\.batch \(4\).*choose 8"),
        ({"queue": 3}, r"queue: 3 .*choose 4"),
        ({"queue": 12, "symmetric": True}, r"queue: 12 .*twice train\.batch \(4\).*choose 8"),
        ({"quue": 8}, "quue: no such key"),
        ({"head": "deep"}, '`mlp` or `linear`, got "deep"'),
    ],
)
def test_options_of_moco_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build("moco", **({"bn_group": 0} | options))


@pytest.mark.parametrize("name", SMALL)
def test_an_unknown_option_is_named(name):
    with pytest.raises(UserError, match=r"framework\.tau: no such key"):
        build(name, tau=0.1)


def test_an_unknown_framework_lists_all_frameworks():
    with pytest.raises(
        UserError, match=r"no `moc` here; choose from byol, moco, simclr, simsiam, sup"
    ):
        frameworks.build(Choice("moc", {}), ENCODER, BATCH)
