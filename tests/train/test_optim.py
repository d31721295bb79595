import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.params.train import TrainConfig
from salmask.train.lars import LARS
from salmask.train.optim import build_optimizer, learning_rate, set_rates

# 4 epochs of 4 steps: warm-up by quarters in steps 0-3, then 12 steps of cosine
FOUR = TrainConfig(epochs=4, warmup_epochs=1, lr=0.8)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.2),
        (1, 0.4),
        (3, 0.8),
        (4, 0.8),  # cos 0
        (7, 0.8 * 0.5 * (1 + math.cos(math.pi / 4))),  # 3 of 12 steps: 0.6828
        (10, 0.4),  # 6 of 12: cos 90 degrees
        (15, 0.8 * 0.5 * (1 + math.cos(math.pi * 11 / 12))),  # 0.0136
        (16, 0.0),
    ],
)
def test_rates_by_hand(step, rate):
    assert learning_rate(FOUR, step, 4) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (2, 0.5), (4, 0.0)])
def test_without_warm_up_it_is_half_a_cosine(step, rate):
    config = TrainConfig(epochs=2, warmup_epochs=0, lr=1.0)
    assert learning_rate(config, step, 2) == pytest.approx(rate, abs=1e-12)


def test_warm_up_may_end_within_an_epoch():
    config = TrainConfig(epochs=2, warmup_epochs=0.5, lr=1.0)  # 2 of 4 steps an epoch
    assert [learning_rate(config, s, 4) for s in range(3)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.03), (119, 0.03), (120, 0.003), (159, 0.003), (160, 3e-4), (199, 3e-4)],
)
def test_steps_of_moco_v1_by_hand(epoch, rate):
    config = TrainConfig(warmup_epochs=0, schedule="step", milestones=(120, 160), lr=0.03)
    for step in (7 * epoch, 7 * epoch + 6):  # the first and the last of an epoch's 7
        assert learning_rate(config, step, 7) == pytest.approx(rate, rel=1e-12)


def test_steps_after_a_warm_up_by_hand():
    config = TrainConfig(
        epochs=4, warmup_epochs=1, schedule="step", milestones=(2, 3), gamma=0.5, lr=0.8
    )
    rates = [learning_rate(config, step, 2) for step in range(8)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


def test_a_constant_schedule_stays_at_the_peak():
    config = TrainConfig(epochs=3, warmup_epochs=1, schedule="constant", lr=0.8)
    rates = [learning_rate(config, step, 2) for step in range(6)]
    assert rates == pytest.approx([0.4] + [0.8] * 5)


@given(st.data(), st.integers(1, 20), st.integers(1, 30))
def test_rates_rise_then_fall_within_their_bounds(data, epochs, steps):
    warmup = data.draw(st.integers(0, epochs))
    schedule = data.draw(
        st.sampled_from(["cosine", "constant", "step"] if epochs > 1 else ["cosine"])
    )
    drops = st.sets(st.integers(1, epochs - 1), min_size=1) if schedule == "step" else st.just(())
    config = TrainConfig(
        epochs=epochs,
        warmup_epochs=warmup,
        schedule=schedule,
        milestones=tuple(sorted(data.draw(drops))),
        lr=1.0,
    )
    rates = [learning_rate(config, step, steps) for step in range(epochs * steps)]
    top = rates.index(max(rates))
    if all(drop >= warmup for drop in config.milestones):
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize(("warmup", "steps"), [(0.5, 1), (0.25, 5), (0.01, 10)])
def test_a_warm_up_of_part_of_a_step_does_not_overshoot(warmup, steps):
    config = TrainConfig(epochs=2, warmup_epochs=warmup, lr=1.0)
    assert max(learning_rate(config, step, steps) for step in range(2 * steps)) <= 1


class Toy(nn.Module):
    """A frozen part, a trunk and a predictor, as SimSiam has them."""

    constant_rate = ("predictor",)

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(2, 2).requires_grad_(False)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.predictor = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
        self.predictors = nn.Linear(4, 4, bias=False)  # a similar name


class Single(nn.Module):
    """A trained parameter and a frozen one, both of ones."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.learning = nn.Parameter(torch.ones(*shape))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def names(model: nn.Module, group: dict) -> list[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_constant_rates_have_their_own_group_and_everything_decays(optimizer):
    model, config = Toy(), TrainConfig(optimizer=optimizer, weight_decay=0.3)
    ordinary, constant = build_optimizer(model, config).param_groups
    assert names(model, ordinary) == [
        *("encoder.0.weight", "encoder.1.weight", "encoder.1.bias", "predictors.weight")
    ]
    assert names(model, constant) == [
        "predictor.0.weight",
        "predictor.1.weight",
        "predictor.1.bias",
    ]
    assert [g["constant"] for g in (ordinary, constant)] == [False, True]
    assert {g["weight_decay"] for g in (ordinary, constant)} == {0.3}


def test_groups_of_lars_leave_biases_and_norms_alone():
    model = Toy()
    built = build_optimizer(model, TrainConfig(optimizer="lars", weight_decay=0.3, momentum=0.7))
    assert isinstance(built, LARS)
    recorded = [
        (names(model, g), g["adapt"], g["weight_decay"], g["constant"]) for g in built.param_groups
    ]
    assert recorded == [
        (["encoder.0.weight", "predictors.weight"], True, 0.3, False),
        (["encoder.1.weight", "encoder.1.bias"], False, 0.0, False),
        (["predictor.0.weight"], True, 0.3, True),
        (["predictor.1.weight", "predictor.1.bias"], False, 0.0, True),
    ]
    assert {(g["momentum"], g["eta"]) for g in built.param_groups} == {(0.7, 1e-3)}


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam", "adamw"])
def test_without_parts_of_constant_rate_no_group_is_empty(optimizer):
    groups = build_optimizer(Single(2, 2), TrainConfig(optimizer=optimizer)).param_groups
    assert [len(g["params"]) for g in groups] == [1] and not groups[0]["constant"]


def test_a_parameter_with_two_names_is_in_one_group():
    model = Toy()
    model.predictors.weight = model.predictor[0].weight
    groups = build_optimizer(model, TrainConfig()).param_groups
    assert [len(g["params"]) for g in groups] == [3, 3]


def test_a_missing_part_of_constant_rate_is_an_error():
    model = Toy()
    model.constant_rate = ("predictr",)
    with pytest.raises(AttributeError, match="predictr"):
        build_optimizer(model, TrainConfig())


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam", "adamw"])
def test_rates_are_set_but_where_they_are_constant_also_after_a_resume(optimizer):
    config = TrainConfig(optimizer=optimizer, lr=0.5)
    first, resumed = (build_optimizer(Toy(), config) for _ in range(2))
    set_rates(first, config, 0.125)
    resumed.load_state_dict(first.state_dict())
    for built, rate in ((first, 0.125), (resumed, 0.125), (resumed, 0.25)):
        set_rates(built, config, rate)
        expected = [0.5 if g["constant"] else rate for g in built.param_groups]
        assert (
            [g["lr"] for g in built.param_groups] == expected
            and rate in expected
            and 0.5 in expected
        )


def test_sgd_follows_its_formula_on_what_learns():
    config = TrainConfig(optimizer="sgd", lr=0.5, momentum=0.9, weight_decay=0.1)
    model = Single(2)
    optimizer = build_optimizer(model, config)
    # gradient 1, decay 0.1 * 1: v = 1.1, p = 1 - 0.5 * 1.1 = 0.45
    # then gradient 1, decay 0.045: v = 0.9 * 1.1 + 1.045 = 2.035, p = 0.45 - 1.0175
    for expected in (0.45, -0.5675):
        model.learning.grad = torch.ones(2)
        optimizer.step()
        torch.testing.assert_close(model.learning.data, torch.full((2,), expected))
    assert torch.equal(model.frozen.data, torch.ones(2))


@pytest.mark.parametrize(
    ("optimizer", "gradient", "expected"),
    [
        # decay 1 - 0.1 * 0.5 = 0.95, then a first step of lr whatever the gradient's size
        ("adamw", 7.0, 0.85),
        ("adamw", 0.0, 0.95),
        # the decay 0.5 * 1 is part of the gradient: one first step of lr, also without another
        ("adam", 7.0, 0.9),
        ("adam", 0.0, 0.9),
        # gradient -0.5 + 0.5 * 1 = 0
        ("adam", -0.5, 1.0),
    ],
)
def test_decay_is_l2_in_adam_and_apart_in_adamw(optimizer, gradient, expected):
    model = Single(2)
    built = build_optimizer(model, TrainConfig(optimizer=optimizer, lr=0.1, weight_decay=0.5))
    model.learning.grad = torch.full((2,), gradient)
    built.step()
    torch.testing.assert_close(model.learning.data, torch.full((2,), expected))


def test_lars_of_a_run_by_hand():
    model = Single(2, 2)
    config = TrainConfig(optimizer="lars", lr=0.5, momentum=0.9, weight_decay=0.5)
    built = build_optimizer(model, config)
    model.learning.grad = torch.full((2, 2), 1.5)
    built.step()
    # g = 1.5 + 0.5 = 2 four times: |g| = 4; |p| = 2; trust = 0.001 * 2 / 4; p = 1 - 0.5 * 0.001
    torch.testing.assert_close(model.learning.data, torch.full((2, 2), 0.9995), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_optimizers_compute_what_torchs_loops_compute(name):
    torch.manual_seed(0)
    fused = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    looped = copy.deepcopy(fused)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    options = {"lr": 0.01, "weight_decay": 1e-4} | ({"momentum": 0.9} if name == "sgd" else {})
    ours = build_optimizer(fused, TrainConfig(optimizer=name, lr=0.01))
    theirs = kind(looped.parameters(), foreach=False, **options)
    for _ in range(4):
        x = torch.randn(2, 3, 4, 4)
        for model, optimizer in ((fused, ours), (looped, theirs)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    closeness = {"atol": 0, "rtol": 0} if name == "sgd" else {"atol": 1e-6, "rtol": 1e-5}
    for a, b in zip(fused.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(a, b, **closeness)
