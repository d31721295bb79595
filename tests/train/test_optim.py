import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.config import TrainConfig
from salmask.train.optim import build_optimizer, learning_rate

# 4 epochs of 4 steps, one of them to warm up: steps 0-3 climb by quarters, 12 steps fall
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


@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 30))
def test_rates_climb_then_fall_and_never_leave_their_bounds(epochs, warmup, steps):
    config = TrainConfig(epochs=epochs, warmup_epochs=warmup, lr=1.0)
    rates = [learning_rate(config, step, steps) for step in range(epochs * steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize(("warmup", "steps"), [(0.5, 1), (0.25, 5), (0.01, 10)])
def test_a_warm_up_of_part_of_a_step_does_not_overshoot(warmup, steps):
    config = TrainConfig(epochs=2, warmup_epochs=warmup, lr=1.0)
    assert max(learning_rate(config, step, steps) for step in range(2 * steps)) <= 1


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)]


def test_sgd_follows_its_formula_on_what_learns():
    config = TrainConfig(optimizer="sgd", lr=0.5, momentum=0.9, weight_decay=0.1)
    learning, frozen = parameters = _parameters()
    optimizer = build_optimizer(parameters, config)
    assert [p for g in optimizer.param_groups for p in g["params"]] == [learning]
    # gradient 1, decay 0.1 * 1: v = 1.1, p = 1 - 0.5 * 1.1 = 0.45
    # then gradient 1, decay 0.045: v = 0.9 * 1.1 + 1.045 = 2.035, p = 0.45 - 1.0175
    for wanted in (0.45, -0.5675):
        learning.grad = torch.ones(2)
        optimizer.step()
        torch.testing.assert_close(learning.data, torch.full((2,), wanted))
    assert torch.equal(frozen.data, torch.ones(2))


def test_adamw_decays_apart_from_the_gradient():
    config = TrainConfig(optimizer="adamw", lr=0.1, weight_decay=0.5)
    learning, _ = parameters = _parameters()
    optimizer = build_optimizer(parameters, config)
    learning.grad = torch.full((2,), 7.0)
    optimizer.step()
    # decay 1 - 0.1 * 0.5 = 0.95, then a first step of lr whatever the gradient's size
    torch.testing.assert_close(learning.data, torch.full((2,), 0.85))
