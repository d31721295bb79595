import copy

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from salmask.backbones import GroupedBatchNorm2d, build_encoder, feature_dim
from salmask.config import EncoderConfig


def _pair(channels: int, group: int) -> tuple[GroupedBatchNorm2d, nn.BatchNorm2d]:
    """A grouped and an ordinary batch norm in the same, unusual state."""
    torch.manual_seed(1)
    ordinary = nn.BatchNorm2d(channels)
    nn.init.normal_(ordinary.weight)
    nn.init.normal_(ordinary.bias)
    ordinary.running_mean.normal_()
    ordinary.running_var.uniform_(0.5, 2)
    grouped = GroupedBatchNorm2d(channels, group)
    grouped.load_state_dict(ordinary.state_dict())
    return grouped, ordinary


@pytest.mark.parametrize(("batch", "group"), [(8, 2), (6, 3), (4, 4), (5, 0)])
def test_each_group_is_normalised_as_a_batch_of_its_own(batch, group):
    grouped, ordinary = _pair(3, group)
    copies = [copy.deepcopy(ordinary) for _ in range(batch // (group or batch))]
    images = torch.randn(batch, 3, 4, 5) * 2 + 1
    weights = torch.randn(batch, 3, 4, 5)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()

    out = grouped(ours)
    wanted = torch.cat(
        [norm(part) for norm, part in zip(copies, theirs.split(group or batch), strict=True)]
    )
    torch.testing.assert_close(out, wanted)

    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name in ("weight", "bias"):
        gradient = sum(getattr(norm, name).grad for norm in copies)
        torch.testing.assert_close(getattr(grouped, name).grad, gradient, atol=1e-5, rtol=1e-5)

    # every copy moved by momentum from the same start, so their mean is the averaged statistic
    for name in ("running_mean", "running_var"):
        wanted = torch.stack([getattr(norm, name) for norm in copies]).mean(0)
        torch.testing.assert_close(getattr(grouped, name), wanted)
    assert grouped.num_batches_tracked == 1


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 100))
def test_every_group_has_mean_zero_and_variance_one(groups, group, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(groups * group, 2, 3, 3, generator=generator) * 5 + 3
    out = GroupedBatchNorm2d(2, group)(images)
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
    norm = GroupedBatchNorm2d(2, 2)
    torch.testing.assert_close(norm(images)[:2], norm(changed)[:2])
    assert not torch.allclose(norm(images)[2:], images[2:])


def test_in_eval_mode_it_is_ordinary_batch_norm():
    grouped, ordinary = _pair(3, 2)
    images = torch.randn(5, 3, 4, 4)
    assert torch.equal(grouped.eval()(images), ordinary.eval()(images))


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"a batch of 5 .* groups of 2"):
        GroupedBatchNorm2d(3, 2)(torch.randn(5, 3, 4, 4))


@pytest.mark.parametrize("arch", ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"])
def test_features_have_the_promised_dimension(arch):
    config = EncoderConfig(arch, width=4, stem="small")
    encoder = build_encoder(config).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, feature_dim(config))
    assert feature_dim(config) == 32 * (4 if arch in ("resnet50", "resnet101") else 1)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("small2", 4), ("small", 8)])
def test_stems_shrink_by_their_stride(stem, side):
    # the later stages shrink by 8: of 64 px remain 64/32, 64/16, 64/8
    encoder = build_encoder(EncoderConfig("resnet10", 4, stem)).eval()
    seen = []
    encoder.layer4.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    with torch.inference_mode():
        encoder(torch.zeros(1, 3, 64, 64))
    assert seen == [(1, 32, side, side)]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_at_full_width_it_is_torchvisions_network(arch):
    theirs = torchvision.models.get_model(arch, weights=None).eval()
    theirs.fc = nn.Identity()
    ours = build_encoder(EncoderConfig(arch, 64, "imagenet")).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    config = EncoderConfig("resnet10", 4, "small")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, other = (build_encoder(config, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv1.weight"], other["conv1.weight"])


def test_every_norm_of_an_encoder_is_grouped():
    encoder = build_encoder(EncoderConfig("resnet10", 4, "small"), bn_group=2)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(m, GroupedBatchNorm2d) and m.group == 2 for m in norms)
