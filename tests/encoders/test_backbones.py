import copy
import re

import pytest
import torch
import torchvision
from torch import nn

from salmask.encoders import backbones
from salmask.encoders.backbones import build_encoder, dry_run, feature_dim
from salmask.encoders.norms import GroupedBatchNorm
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig

RESIDUAL = ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
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


def _last_map(network: nn.Module) -> tuple[int, ...]:
    """What the last convolution makes of an image of 64 px."""
    seen = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    dry_run(network, 64, 64)
    return tuple(seen[-1][2:])


def _same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ----------------------------------------------------------------------------- residual networks


@pytest.mark.parametrize("arch", RESIDUAL)
def test_features_have_the_promised_dimension(arch):
    config = EncoderConfig(arch, width=4, stem="small")
    encoder = build_encoder(config).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, feature_dim(config))
    assert feature_dim(config) == 32 * (1 if arch in ("resnet10", "resnet18", "resnet34") else 4)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("small2", 4), ("small", 8)])
def test_stems_shrink_by_their_stride(stem, side):
    # the later stages shrink by 8: of 64 px remain 64/32, 64/16, 64/8
    assert _last_map(build_encoder(EncoderConfig("resnet10", 4, stem))) == (side, side)


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
def test_a_seed_gives_the_weights_that_it_always_gave(arch, stem, sum_of_all):
    """Recorded at 27c44b1. Every weight has a sign and a factor of its own in the sum; a digest
    would hang on the last bit of the processor's normal distribution."""
    found = 0.0
    for i, value in enumerate(
        build_encoder(EncoderConfig(arch, 4, stem), seed=3).state_dict().values()
    ):
        places = torch.arange(value.numel(), dtype=torch.float64)
        found += float(value.double().flatten() @ torch.cos(i + places))
    assert found == pytest.approx(sum_of_all, abs=1e-4)


def test_parameters_are_called_what_they_always_were():
    theirs = torchvision.models.resnet34(weights=None).state_dict()
    ours = build_encoder(EncoderConfig("resnet34", 4, "small2"), bn_group=2).state_dict()
    assert list(ours) == [name for name in theirs if not name.startswith("fc.")]


# -------------------------------------------------------------------------- torchvision's others


@pytest.mark.parametrize("arch", OTHERS)
def test_features_are_what_torchvisions_classifier_sees(arch):
    theirs = torchvision.models.get_model(arch, weights=None).eval()
    ours = build_encoder(EncoderConfig(arch)).eval()
    assert ours.load_state_dict(dict(theirs.state_dict()), strict=False).missing_keys == []
    head = theirs.fc if hasattr(theirs, "fc") else theirs.classifier
    if arch == "convnext_tiny":  # its norm is ours
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
    assert torch.equal(torch.get_rng_state(), before)  # drawing there would not resume
    assert out.isfinite().all() and out.std() > 0
    assert all(p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())

    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert bool(norms) == (arch != "convnext_tiny")  # which has layer norms
    assert all(isinstance(m, GroupedBatchNorm) and m.group == 2 for m in norms)

    other = build_encoder(EncoderConfig(arch, stem="small"), seed=1)
    other.load_state_dict(dict(encoder.state_dict()))  # as from a file, without torch's metadata
    with torch.inference_mode():
        assert torch.equal(other.eval()(images), encoder.eval()(images))


@pytest.mark.parametrize("stem", ["imagenet", *SMALL_STEM])
@pytest.mark.parametrize("arch", OTHERS)
def test_other_stems_shrink_like_those_of_residual_networks(arch, stem):
    config = EncoderConfig(arch, stem=stem)
    with torch.device("meta"):
        encoder = build_encoder(config)
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    side, stride = SMALL_STEM.get(stem, (2, None))
    assert _last_map(encoder) == (side, side)
    first = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
    if stride:
        assert (first.kernel_size, first.padding, first.stride) == ((3, 3), (1, 1), (stride,) * 2)


@pytest.mark.parametrize("stem", ["imagenet", *SMALL_STEM])
def test_the_way_of_the_others_leads_to_our_residual_network(stem, monkeypatch):
    config = EncoderConfig("resnet18", stem=stem)
    ours = build_encoder(config).eval()
    monkeypatch.delitem(backbones.LAYERS, "resnet18")
    theirs = build_encoder(config).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(theirs(images), ours(images))


# ------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (EncoderConfig("resnet10", 4, "small"), "conv1.weight"),
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
    encoder = build_encoder(EncoderConfig("resnet10", 4, "small"), bn_group=2)
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, GroupedBatchNorm) and m.group == 2 for m in norms)


@pytest.mark.parametrize(
    ("config", "last"),
    [
        (EncoderConfig("resnet10", 4), "bn2"),
        (EncoderConfig("resnet50", 4), "bn3"),
        (EncoderConfig("resnext50_32x4d"), "bn3"),
    ],
)
def test_residual_blocks_can_begin_as_the_identity(config, last):
    plain, zeroed = (build_encoder(config, seed=0, zero_init=z) for z in (False, True))
    blocks = [name for name, m in plain.named_modules() if hasattr(m, "downsample")]
    wanted = copy.deepcopy(plain)
    for name in blocks:
        nn.init.zeros_(wanted.get_parameter(f"{name}.{last}.weight"))
    assert _same(zeroed, wanted) and not _same(zeroed, plain)


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_networks_without_such_blocks_begin_as_always(arch):
    assert _same(*(build_encoder(EncoderConfig(arch), seed=0, zero_init=z) for z in (False, True)))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (EncoderConfig("vgg16"), "vgg16 does not end in a global average pool but in layers"),
        (EncoderConfig("alexnet"), "alexnet does not end in a global average pool but in layers"),
        (EncoderConfig("squeezenet1_1"), "does not end in a global average pool of features"),
        (EncoderConfig("googlenet"), "googlenet has further classifiers"),
        (EncoderConfig("inception_v3"), "inception_v3 has a further classifier"),
        (EncoderConfig("vit_b_16"), "vit_b_16 is a transformer"),
        (EncoderConfig("swin_t"), "swin_t is a transformer"),
        (EncoderConfig("maxvit_t"), "maxvit_t is a transformer"),
    ],
)
@pytest.mark.parametrize("ask", [build_encoder, feature_dim])
def test_networks_that_do_not_fit_are_refused(ask, config, told, monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", pytest.fail)  # nothing is built for it
    with pytest.raises(UserError, match=rf"encoder\.arch: .*{told}.*; choose e\.g\. resnet50, "):
        ask(config)


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("resnet19", "`resnet19`; did you mean resnet18, resnet10, "),
        ("convnext-tiny", "`convnext-tiny`; did you mean convnext_tiny, "),
        ("fcn_resnet50", "`fcn_resnet50`; did you mean resnet50, "),  # would fetch its backbone
        ("zzz", "`zzz`; choose e.g. resnet50, convnext_tiny, "),
    ],
)
def test_unknown_networks_are_refused_with_others_in_their_place(arch, told, monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", pytest.fail)
    with pytest.raises(UserError, match=re.escape(f"encoder.arch: there is no network {told}")):
        build_encoder(EncoderConfig(arch))


@pytest.mark.parametrize("ask", [build_encoder, feature_dim])
def test_width_belongs_to_residual_networks(ask):
    told = r"encoder\.width belongs to residual networks \(resnet10, .*convnext_tiny .* got 32"
    with pytest.raises(UserError, match=told):
        ask(EncoderConfig("convnext_tiny", 32))
