import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.train.lars import LARS


def step(optimizer: LARS, *pairs: tuple[nn.Parameter, list | torch.Tensor | None]) -> None:
    for parameter, grad in pairs:
        parameter.grad = None if grad is None else torch.as_tensor(grad, dtype=parameter.dtype)
    optimizer.step()


def test_two_steps_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = LARS([weight], lr=2.0, momentum=0.9, weight_decay=0.5, eta=0.1)
    # g = (4.5, 6) + 0.5 (3, 4) = (6, 8), |g| = 10, |p| = 5: trust = 0.1 * 5 / 10 = 0.05
    # buffer = 0.05 (6, 8) = (0.3, 0.4); p = (3, 4) - 2 (0.3, 0.4) = (2.4, 3.2)
    step(optimizer, (weight, [[4.5, 6.0]]))
    assert weight.flatten().tolist() == pytest.approx([2.4, 3.2], rel=1e-12)
    # g = (0.8, -1.6) + 0.5 (2.4, 3.2) = (2, 0), |g| = 2, |p| = 4: trust = 0.1 * 4 / 2 = 0.2
    # buffer = 0.9 (0.3, 0.4) + 0.2 (2, 0) = (0.67, 0.36); p = (2.4, 3.2) - (1.34, 0.72)
    step(optimizer, (weight, [[0.8, -1.6]]))
    assert weight.flatten().tolist() == pytest.approx([1.06, 2.48], rel=1e-12)


def reference(values, grads, *, lr, momentum, weight_decay, eta, adapt):
    """One parameter as a list of numbers through all steps, by the formula (You et al. 2017)."""
    buffer = [0.0] * len(values)
    for grad in grads:
        trust = 1.0
        if adapt:
            grad = [g + weight_decay * p for g, p in zip(grad, values, strict=True)]
            size, slope = math.hypot(*values), math.hypot(*grad)
            if size > 0 and slope > 0:
                trust = eta * size / slope
        buffer = [momentum * b + trust * g for b, g in zip(buffer, grad, strict=True)]
        values = [p - lr * b for p, b in zip(values, buffer, strict=True)]
    return values


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([0.0, 1e-6, 0.1]),
    st.sampled_from([0.0, 0.9]),
)
def test_it_follows_the_slow_reference(seed, shapes, steps, weight_decay, momentum):
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    options = {"lr": 0.7, "momentum": momentum, "weight_decay": weight_decay, "eta": 0.02}
    parameters = [nn.Parameter(noise(shape)) for shape in shapes]
    grads = [[noise(shape) for _ in range(steps)] for shape in shapes]
    adapted = [index % 3 != 2 for index in range(len(shapes))]
    groups = [{"params": [p], "adapt": a} for p, a in zip(parameters, adapted, strict=True)]
    before = [p.flatten().tolist() for p in parameters]
    optimizer = LARS(groups, **options)
    for index in range(steps):
        step(optimizer, *((p, g[index]) for p, g in zip(parameters, grads, strict=True)))
    for p, start, grad, adapt in zip(parameters, before, grads, adapted, strict=True):
        flat = [g.flatten().tolist() for g in grad]
        expected = reference(start, flat, **options, adapt=adapt)
        assert p.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_adaptation_it_is_plain_sgd_with_momentum(generator):
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizer = LARS([{"params": [ours], "adapt": False}], lr=0.3, weight_decay=0.5)
    plain = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, weight_decay=0.0)
    for _ in range(4):
        ours.grad = torch.randn(5, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_the_step_does_not_depend_on_the_gradients_size(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    start, grad = (torch.randn(3, 4, generator=generator).double() for _ in range(2))
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    step(LARS([one], lr=0.5), (one, grad))
    step(LARS([other], lr=0.5), (other, scale * grad))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    moved = (one.detach() - start).norm().item()
    assert moved == pytest.approx(0.5 * 1e-3 * start.norm().item())  # lr eta |p|


@pytest.mark.parametrize(
    ("start", "grad", "weight_decay", "expected"),
    [
        ([[3.0, 4.0]], [[0.0, 0.0]], 0.0, [3.0, 4.0]),  # no gradient
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.5, [0.0, 0.0]),
        ([[0.0, 0.0]], [[3.0, 4.0]], 0.5, [-6.0, -8.0]),  # trust 1, lr 2: p = -lr g
        # decay alone: g = (1.5, 2), trust = 0.1 * 5 / 2.5 = 0.2, p = (3, 4) - 2 * 0.2 (1.5, 2)
        ([[3.0, 4.0]], [[0.0, 0.0]], 0.5, [2.4, 3.2]),
    ],
)
def test_zero_parameters_and_zero_gradients(start, grad, weight_decay, expected):
    weight, other = nn.Parameter(torch.tensor(start)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight, other], lr=2.0, weight_decay=weight_decay, eta=0.1)
    step(optimizer, (weight, grad), (other, torch.ones(2, 2)))
    assert weight.flatten().tolist() == pytest.approx(expected)
    assert other.isfinite().all() and (other < 1).all()


def test_what_has_no_gradient_stays_and_gradients_are_left_as_they_are():
    weight, idle = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = LARS(
        [{"params": [weight, idle]}, {"params": [nn.Parameter(torch.ones(1))]}], lr=1.0
    )
    step(optimizer, (weight, torch.ones(2, 2)), (idle, None))
    assert torch.equal(idle, torch.ones(2, 2)) and idle not in optimizer.state
    assert torch.equal(weight.grad, torch.ones(2, 2))


def test_a_closure_gives_the_loss():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=1.0, eta=0.1)

    def closure() -> torch.Tensor:
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    torch.testing.assert_close(weight.data, torch.full((2, 2), 0.9))  # trust = 0.1 * 2 / 2


def test_norms_never_leave_the_device():
    """Tensors on `meta` have no values, so a step that reads one (`if norm > 0`) fails."""
    weight, bias = (nn.Parameter(torch.ones(2, 2, device="meta")) for _ in range(2))
    optimizer = LARS([{"params": [weight]}, {"params": [bias], "adapt": False}], lr=1.0)
    for parameter in (weight, bias):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(RuntimeError):
        bool(weight.norm() > 0)


def _small() -> tuple[nn.Module, LARS]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights}, {"params": others, "adapt": False}]
    return model, LARS(groups, lr=0.3, weight_decay=1e-4)


def _train(model: nn.Module, optimizer: LARS, batches: torch.Tensor) -> None:
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, generator, done):
    batches = torch.randn(6, 16, 4, generator=generator)
    model, optimizer = _small()
    _train(model, optimizer, batches[:done])
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    at_stop = copy.deepcopy(model.state_dict())
    _train(model, optimizer, batches[done:])

    resumed, fresh = _small()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    fresh.load_state_dict(state)
    assert [g["adapt"] for g in fresh.param_groups] == [True, False]
    _train(resumed, fresh, batches[done:])
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
        assert not torch.equal(at_stop[name], value), name
