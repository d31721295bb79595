import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.encoders import norms
from salmask.encoders.norms import GroupedBatchNorm, group_norms, without_statistics

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def _pair(channels: int, group: int, affine: bool = True) -> tuple[GroupedBatchNorm, nn.Module]:
    """A grouped batch norm and an ordinary one for images, in the same, unusual state."""
    torch.manual_seed(1)
    ordinary = nn.BatchNorm2d(channels, affine=affine)
    for parameter in ordinary.parameters():
        nn.init.normal_(parameter)
    ordinary.running_mean.normal_()
    ordinary.running_var.uniform_(0.5, 2)
    grouped = GroupedBatchNorm(channels, group, affine)
    grouped.load_state_dict(ordinary.state_dict())
    return grouped, ordinary


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 1, 1)], ids=["images", "features"])
@pytest.mark.parametrize(("batch", "group"), [(8, 2), (6, 3), (4, 4), (5, 0)])
def test_each_group_is_normalised_as_a_batch_of_its_own(batch, group, shape, affine, momentum):
    grouped, ordinary = _pair(3, group, affine)
    grouped.momentum = ordinary.momentum = momentum
    copies = [copy.deepcopy(ordinary) for _ in range(batch // (group or batch))]
    images = torch.randn(batch, *shape) * 2 + 1
    weights = torch.randn(batch, *shape)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()

    out = grouped(ours.flatten(1) if shape == (3, 1, 1) else ours).view(images.shape)
    expected = torch.cat(
        [norm(part) for norm, part in zip(copies, theirs.split(group or batch), strict=True)]
    )
    torch.testing.assert_close(out, expected)

    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, parameter in grouped.named_parameters():
        gradient = sum(norm.get_parameter(name).grad for norm in copies)
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-5)

    # every copy moved by momentum from the same start, so their mean is the averaged statistic
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(norm, name) for norm in copies]).mean(0)
        torch.testing.assert_close(getattr(grouped, name), expected)
    assert grouped.num_batches_tracked == 1


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 100))
def test_every_group_has_mean_zero_and_variance_one(groups, group, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(groups * group, 2, 3, 3, generator=generator) * 5 + 3
    out = GroupedBatchNorm(2, group)(images)
    for part in out.split(group):
        torch.testing.assert_close(part.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        variance = part.var((0, 2, 3), correction=0)
        torch.testing.assert_close(variance, torch.ones(2), atol=1e-3, rtol=0)


@given(st.integers(0, 100))
def test_other_groups_do_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 2, 3, 3, generator=generator)
    changed = images.clone()
    changed[2:] *= 7
    norm = GroupedBatchNorm(2, 2)
    torch.testing.assert_close(norm(images)[:2], norm(changed)[:2])
    assert not torch.allclose(norm(images)[2:], images[2:])


def test_in_eval_mode_it_is_ordinary_batch_norm():
    grouped, ordinary = _pair(3, 2)
    images = torch.randn(5, 3, 4, 4)
    assert torch.equal(grouped.eval()(images), ordinary.eval()(images))


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"a batch of 5 .* groups of 2"):
        GroupedBatchNorm(3, 2)(torch.randn(5, 3, 4, 4))


@pytest.mark.parametrize("group", [0, 2, 4])
def test_running_statistics_stay_alone_while_they_are_not_tracked(group):
    norm, reference = (_pair(3, group)[0] for _ in range(2))
    before = {name: getattr(norm, name).clone() for name in BUFFERS}
    images = torch.randn(4, 3, 5, 5)
    norm.track_running_stats = False
    # still normalised by the batch's statistics
    assert torch.equal(norm(images), reference(images))
    assert all(torch.equal(getattr(norm, name), value) for name, value in before.items())
    norm.track_running_stats = True
    norm(images)
    for name in BUFFERS:  # the update starts from the old statistics
        assert torch.equal(getattr(norm, name), getattr(reference, name))
        assert not torch.equal(getattr(norm, name), before[name])


@pytest.mark.parametrize(
    ("images", "statistics"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_statistics_are_at_least_single_precision(images, statistics):
    norm, reference = (_pair(3, group)[0].to(statistics) for group in (2, 0))
    x = torch.randn(4, 3, 5, 5).to(images)
    out = norm(x)
    assert (out.dtype, norm.running_var.dtype) == (images, statistics)
    assert torch.equal(out[:2], reference(x[:2]))


def test_ordinary_norms_become_grouped_ones_in_the_same_state():
    images = nn.BatchNorm2d(4, eps=0.1, momentum=0.3)
    features = nn.BatchNorm1d(4, affine=False).eval()
    chain = [
        images,
        nn.GroupNorm(2, 4),
        nn.Sequential(nn.Flatten(2), nn.MaxPool1d(9)),
        nn.Flatten(),
    ]
    network = nn.Sequential(*chain, nn.Sequential(features))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    parameters = list(network.parameters())
    x = torch.randn(4, 4, 3, 3)
    expected = copy.deepcopy(network)(x)

    assert group_norms(network, 0) is network
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert (network[0].eps, network[0].momentum, network[0].training) == (0.1, 0.3, True)
    assert network[4][0].weight is None and not network[4][0].training
    assert isinstance(network[1], nn.GroupNorm)
    assert torch.equal(network(x), expected)

    group_norms(network, 2)  # back to groups, of another size
    assert [network[0].group, network[4][0].group] == [2, 2]


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (4, 3)), (nn.BatchNorm2d, (4, 3, 2, 2))]
)
def test_a_lone_norm_becomes_grouped(kind, shape):
    grouped = group_norms(kind(3), 2)
    assert isinstance(grouped, GroupedBatchNorm)
    x = torch.randn(shape)
    assert torch.equal(grouped(x)[:2], kind(3)(x[:2]))


def _inputs(shape, dtype, layout, affine):
    """x, weight, bias: leaves that require gradients."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3 + 5).to(dtype)
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    own = [torch.randn(shape[1], generator=generator) for _ in range(2)] if affine else [None, None]
    return [t if t is None else t.requires_grad_() for t in (x, *own)]


@pytest.mark.parametrize("fast", ["in_one_call", "grouped"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((8, 16, 6, 5), torch.channels_last),
        ((8, 16, 6, 5), torch.contiguous_format),
        ((8, 16), None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_paths_equal_the_loop(fast, affine, shape, layout, dtype):
    paths = {"in_one_call": norms.normalise_in_one_call, "grouped": _grouped}
    outcomes = []
    for path in (norms.normalise_by_loop, paths[fast]):
        leaves = _inputs(shape, dtype, layout, affine)
        out, stats = path(leaves[0], 2, *leaves[1:], 1e-5)
        assert out.dtype == dtype and stats.dtype == torch.float32 and stats.shape == (2, 4, 16)
        assert out.stride() == leaves[0].stride()
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        (out * weights).sum().backward()
        outcomes.append([out, stats, *(leaf.grad for leaf in leaves if leaf is not None)])
    rounding = 2e-2 if dtype == torch.bfloat16 else 1e-6
    for ours, theirs in zip(*outcomes, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, atol=rounding * scale, rtol=rounding)


def _grouped(x, group, weight, bias, eps):
    return norms._Grouped.apply(x, weight, bias, group, eps)


def test_a_gradient_passes_norms_whose_parameters_are_frozen():
    norm = GroupedBatchNorm(3, 2)
    x, other = (torch.randn(4, 3, 2, 2).requires_grad_() for _ in range(2))
    other.data.copy_(x.data)
    (norm(x) ** 3).sum().backward()
    norm.requires_grad_(False)
    (norm(other) ** 3).sum().backward()
    assert torch.equal(x.grad, other.grad)


def test_a_network_without_statistics_keeps_them():
    network = without_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), GroupedBatchNorm(4, 2)))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    out = network(torch.randn(4, 3, 5, 5))
    torch.testing.assert_close(out[:2].mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
