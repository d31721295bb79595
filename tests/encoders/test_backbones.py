import copy
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from salmask.encoders.backbones import (
    build_encoder,
    check_encoder,
    dry_run,
    feature_dim,
    is_resnet,
    operations,
    parameter_count,
    residual,
    torchvision_models,
)
from salmask.encoders.norms import GroupedBatchNorm
from salmask.errors import UserError
from salmask.params.encoder import RESIDUAL, EncoderConfig

OTHERS = {  # one of each family, with its number of channels after pooling
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 576,
    "regnet_y_400mf": 440,
    "resnext50_32x4d": 2048,
    "shufflenet_v2_x0_5": 1024,
}
SMALL_STEM = {"small": (8, 1), "small2": (4, 2)}  # side of the last map of 64 px, first stride


def _on_meta(config: EncoderConfig) -> nn.Module:
    with torch.device("meta"):
        return build_encoder(config).eval()


def _last_map(network: nn.Module) -> tuple[int, ...]:
    """The height and width of the last convolution's output, for images of 64 px."""
    shapes = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    dry_run(network, 64, 64)
    return tuple(shapes[-1][2:])


def _same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ----------------------------------------------------------------------------- residual networks


def test_the_section_names_all_residual_networks():
    assert tuple(residual.BLOCKS) == RESIDUAL


@pytest.mark.parametrize("stem", ["imagenet", "small", "small2"])
@pytest.mark.parametrize("arch", RESIDUAL)
def test_the_formulas_of_residual_networks_agree_with_the_networks(arch, stem):
    config = EncoderConfig(arch, width=5, stem=stem)
    network = _on_meta(config)
    for side in (33, 64):
        with FlopCounterMode(display=False) as counter:
            features = network(torch.empty(2, 3, side, side, device="meta"))
        assert features.shape == (2, feature_dim(config))
        assert counter.get_total_flops() == 2 * operations(config, side)
    assert sum(p.numel() for p in network.parameters()) == parameter_count(config)


def test_the_formulas_need_no_torchvision():
    code = (
        "import sys; from salmask.params.encoder import EncoderConfig as C\n"
        "from salmask.encoders.backbones import *\n"
        "from salmask.encoders import backbones as b\n"
        "b.check_encoder(C()); b.feature_dim(C()); b.operations(C(), 224); b.parameter_count(C())\n"
        "assert b.is_resnet(C()) and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("small2", 4), ("small", 8)])
def test_stems_shrink_by_their_stride(stem, side):
    # the later stages shrink by 8: of 64 px remain 64/32, 64/16, 64/8
    assert _last_map(build_encoder(EncoderConfig("resnet10", 8, stem))) == (side, side)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_at_full_width_it_is_torchvisions_network(arch):
    theirs = torchvision.models.get_model(arch, weights=None).eval()
    theirs.fc = nn.Identity()
    ours = build_encoder(EncoderConfig(arch, 64, "imagenet")).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("arch", "stem", "sum_of_all"),
    [
        ("resnet10", "imagenet", -39.338302),
        ("resnet10", "small", -38.996691),
        ("resnet18", "imagenet", 33.441972),
        ("resnet18", "small", 33.874216),
        ("resnet34", "imagenet", 16.926158),
        ("resnet34", "small", 15.816737),
        ("resnet50", "imagenet", 73.178114),
        ("resnet50", "small", 68.615306),
        ("resnet101", "imagenet", -16.903382),
        ("resnet101", "small", -18.800389),
    ],
)
def test_a_seed_gives_the_recorded_weights(arch, stem, sum_of_all):
    """Recorded values of a weighted sum of all weights. A digest would depend on the last bits,
    which differ between processors."""
    weights = build_encoder(EncoderConfig(arch, 4, stem), seed=3).state_dict()
    total = 0.0
    for i, value in enumerate(weights.values()):
        positions = torch.arange(value.numel(), dtype=torch.float64)
        total += float(value.double().flatten() @ torch.cos(i + positions))
    assert total == pytest.approx(sum_of_all, abs=1e-4)


def test_parameters_have_torchvisions_names():
    theirs = torchvision.models.resnet34(weights=None).state_dict()
    ours = build_encoder(EncoderConfig("resnet34", 4, "small2"), bn_group=2).state_dict()
    assert list(ours) == [name for name in theirs if not name.startswith("fc.")]


# ------------------------------------------------------------------- torchvision's other networks


@pytest.mark.parametrize("arch", OTHERS)
def test_features_are_the_input_of_torchvisions_classifier(arch):
    theirs = torchvision.models.get_model(arch, weights=None).eval()
    ours = build_encoder(EncoderConfig(arch)).eval()
    assert ours.load_state_dict(dict(theirs.state_dict()), strict=False).missing_keys == []
    head = theirs.fc if hasattr(theirs, "fc") else theirs.classifier
    if arch == "convnext_tiny":  # the encoder keeps its norm
        head = head[2]
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = ours(images)
        torch.testing.assert_close(head(features), theirs(images))
    assert features.shape == (2, OTHERS[arch])
    assert feature_dim(EncoderConfig(arch, stem="small2")) == OTHERS[arch]


@pytest.mark.parametrize("arch", OTHERS)
def test_they_learn_and_keep_their_state(arch):
    encoder = build_encoder(EncoderConfig(arch, stem="small"), bn_group=2, seed=0)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    out = encoder(images)
    out.square().sum().backward()
    # no draws, so that a resumed run ends in the same bytes
    assert torch.equal(torch.get_rng_state(), before)
    assert out.isfinite().all() and out.std() > 0
    assert all(p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())

    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert bool(norms) == (arch != "convnext_tiny")  # ConvNeXt has layer norms
    assert all(isinstance(m, GroupedBatchNorm) and m.group == 2 for m in norms)

    other = build_encoder(EncoderConfig(arch, stem="small"), seed=1)
    other.load_state_dict(dict(encoder.state_dict()))  # as from a file, without torch's metadata
    with torch.inference_mode():
        assert torch.equal(other.eval()(images), encoder.eval()(images))


@pytest.mark.parametrize("stem", ["imagenet", *SMALL_STEM])
@pytest.mark.parametrize("arch", OTHERS)
def test_small_stems_shrink_as_those_of_residual_networks(arch, stem):
    config = EncoderConfig(arch, stem=stem)
    encoder = _on_meta(config)
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    side, stride = SMALL_STEM.get(stem, (2, None))
    assert _last_map(encoder) == (side, side)
    first = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
    if stride:
        assert (first.kernel_size, first.padding, first.stride) == ((3, 3), (1, 1), (stride,) * 2)


@pytest.mark.parametrize("stem", ["imagenet", *SMALL_STEM])
def test_both_modules_build_the_same_resnet(stem):
    config = EncoderConfig("resnet18", stem=stem)
    ours = build_encoder(config).eval()
    theirs = torchvision_models.build(config, zero_init=False).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(theirs(images), ours(images))


@pytest.mark.parametrize("arch", ["convnext_tiny", "resnext50_32x4d"])
def test_operations_and_parameters_of_other_networks(arch):
    config = EncoderConfig(arch, stem="small")
    network = _on_meta(config)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 32, 32, device="meta"))
    assert operations(config, 32) == counter.get_total_flops()
    assert parameter_count(config) == sum(p.numel() for p in network.parameters())


def test_which_networks_are_resnets():
    archs = ("resnet10", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
    assert all(is_resnet(EncoderConfig(arch)) for arch in archs)
    assert not is_resnet(EncoderConfig("convnext_tiny"))


# --------------------------------------------------------------------------------- all networks


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (EncoderConfig("resnet10", 8, "small"), "conv1.weight"),
        (EncoderConfig("densenet121", stem="small"), "features.conv0.weight"),
        (EncoderConfig("mobilenet_v3_small"), "features.0.0.weight"),
    ],
)
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(config, first):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, other = (build_encoder(config, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert _same(a, b)
    assert not torch.equal(a.get_parameter(first), other.get_parameter(first))
    feature_dim(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_norm_of_an_encoder_is_grouped():
    encoder = build_encoder(EncoderConfig("resnet10", 8, "small"), bn_group=2)
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, GroupedBatchNorm) and m.group == 2 for m in norms)


@pytest.mark.parametrize(
    ("config", "last"),
    [
        (EncoderConfig("resnet10", 8), "bn2"),
        (EncoderConfig("resnet50", 4), "bn3"),
        (EncoderConfig("resnext50_32x4d"), "bn3"),
    ],
)
def test_residual_blocks_can_start_as_the_identity(config, last):
    plain, zeroed = (build_encoder(config, seed=0, zero_init=z) for z in (False, True))
    blocks = [name for name, m in plain.named_modules() if hasattr(m, "downsample")]
    expected = copy.deepcopy(plain)
    for name in blocks:
        nn.init.zeros_(expected.get_parameter(f"{name}.{last}.weight"))
    assert _same(zeroed, expected) and not _same(zeroed, plain)


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_networks_without_residual_blocks_ignore_zero_init(arch):
    assert _same(*(build_encoder(EncoderConfig(arch), seed=0, zero_init=z) for z in (False, True)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig("vgg16"), "vgg16 does not end in global average pooling but in layers"),
        (
            EncoderConfig("alexnet"),
            "alexnet does not end in global average pooling but in layers",
        ),
        (EncoderConfig("squeezenet1_1"), "does not end in global average pooling of features"),
        (EncoderConfig("googlenet"), "googlenet has auxiliary classifiers"),
        (EncoderConfig("inception_v3"), "inception_v3 has an auxiliary classifier"),
        (EncoderConfig("vit_b_16"), "vit_b_16 is a transformer"),
        (EncoderConfig("swin_t"), "swin_t is a transformer"),
        (EncoderConfig("maxvit_t"), "maxvit_t is a transformer"),
    ],
)
@pytest.mark.parametrize("function", [build_encoder, feature_dim, check_encoder])
def test_networks_that_do_not_fit_are_refused(function, config, message, monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", pytest.fail)  # must not build a network
    with pytest.raises(UserError, match=rf"encoder\.arch: .*{message}.*; choose e\.g\. resnet50, "):
        function(config)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet19", "`resnet19`; did you mean resnet18, resnet10, "),
        ("convnext-tiny", "`convnext-tiny`; did you mean convnext_tiny, "),
        # building it would download its backbone
        ("fcn_resnet50", "`fcn_resnet50`; did you mean resnet50, "),
        ("zzz", "`zzz`; choose e.g. resnet50, convnext_tiny, "),
    ],
)
def test_unknown_networks_are_refused_with_others_in_their_place(arch, message, monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", pytest.fail)
    with pytest.raises(UserError, match=re.escape(f"encoder.arch: there is no network {message}")):
        build_encoder(EncoderConfig(arch))


@pytest.mark.parametrize("function", [build_encoder, feature_dim, check_encoder])
def test_width_belongs_to_residual_networks(function):
    message = r"encoder\.width applies to residual networks \(resnet10, .*convnext_tiny .* got 32"
    with pytest.raises(UserError, match=message):
        function(EncoderConfig("convnext_tiny", 32))
