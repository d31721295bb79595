import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.transforms._presets import ImageClassification

from salmask.encoders import on_disk as encoder_file
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import InputSpec
from salmask.errors import UserError
from salmask.masks.options import input_filter
from salmask.params.encoder import EncoderConfig
from salmask.params.values import Choice
from salmask.saliency import stored_localizer
from salmask.saliency.localizers import LOCALIZERS, FittedLocalizer
from salmask.saliency.trunks import Localizer

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _with_statistics(model: nn.Module) -> nn.Module:
    """In eval mode, with running statistics of random images."""
    torch.manual_seed(0)
    model.train()(torch.rand(4, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def network() -> torchvision.models.ResNet:
    torch.manual_seed(0)
    return _with_statistics(torchvision.models.resnet18(weights=None))


def _normalised(statistics=IMAGENET) -> Tensor:
    mean, std = (torch.tensor(each)[:, None, None] for each in statistics)
    return (IMAGES - mean) / std


@torch.inference_mode()
def _input_of(layer: nn.Module, model: nn.Module, images: Tensor) -> Tensor:
    """The input of `layer`, such as the pooling, in a forward pass of `model`."""
    measured = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: measured.append(inputs[0]))
    model(images)
    handle.remove()
    return measured[0]


@torch.inference_mode()
def _stored(result: FittedLocalizer, folder: Path) -> Tensor:
    """The features of IMAGES by a localizer that was saved and loaded again."""
    stored_localizer.save(*result, folder)
    spec, trunk = stored_localizer.load(folder, CPU)
    assert spec == result[0] and not trunk.training
    return trunk(IMAGES)


def _write(tensors: dict, path: Path) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts weights under the URL of one of torchvision's entries; torch.hub keeps nothing yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "web").mkdir()

    def to(entry, tensors: dict) -> Path:
        path = _write(tensors, tmp_path / "web" / "net.pth")
        path = path.rename(path.with_name(f"net-{_digest(path)[:8]}.pth"))
        monkeypatch.setattr(entry.value, "url", path.as_uri())
        return path

    return to


# ---------------------------------------------------------- localizers with their own weights


@pytest.mark.parametrize("version", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_resnet50_is_torchvisions(tmp_path, publish, version):
    torch.manual_seed(0)
    reference = _with_statistics(torchvision.models.resnet50(weights=None))
    entry = torchvision.models.ResNet50_Weights[version]
    source = publish(entry, reference.state_dict())
    result = LOCALIZERS["resnet50"](weights=version, download=True)
    assert result[0] == Localizer(
        "resnet50", "torchvision", "resnet50", *IMAGENET, 32, _digest(source)
    )
    target = _input_of(reference.avgpool, reference, _normalised())
    torch.testing.assert_close(_stored(result, tmp_path / "localizer"), target)


def test_missing_resnet50_weights_name_the_file_to_get(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"put torchvision's file resnet50-11ad3fa6\.pth there"):
        LOCALIZERS["resnet50"]()
    with pytest.raises(UserError, match=r"resnet50-0676ba61\.pth"):
        LOCALIZERS["resnet50"](weights="IMAGENET1K_V1")


def test_a_file_that_is_not_resnet50s_is_refused(tmp_path):
    path = _write({"a": torch.zeros(1)}, tmp_path / "resnet50-11ad3fa6.pth")
    with pytest.raises(UserError, match=r"not the expected file.*expected 11ad3fa6"):
        LOCALIZERS["resnet50"](path=path)


@pytest.fixture(scope="module")
def vgg_features() -> nn.Sequential:
    torch.manual_seed(0)
    return torchvision.models.vgg16(weights=None).features.eval()


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_vgg16_takes_any_file_of_its_features(tmp_path, vgg_features, prefix):
    halves = {f"{prefix}{k}": v.half() for k, v in vgg_features.state_dict().items()}
    path = _write(halves, tmp_path / "vgg.safetensors")
    result = LOCALIZERS["vgg16"](path=path, sha256=_digest(path))
    assert result[0] == Localizer("vgg16", "torchvision", "vgg16", *IMAGENET, 32, _digest(path))
    with torch.inference_mode():
        target = vgg_features(_normalised())
    features = _stored(result, tmp_path / "localizer")
    torch.testing.assert_close(features, target, atol=1e-3, rtol=1e-2)
    with pytest.raises(UserError, match="not the expected file"):
        LOCALIZERS["vgg16"](path=path, sha256="0" * 64)


def test_vgg16_by_torchvisions_name_must_be_torchvisions_file(tmp_path, publish, vgg_features):
    tensors = {f"features.{k}": v for k, v in vgg_features.state_dict().items()}
    entry = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    source = publish(entry, tensors | {"classifier.6.bias": torch.zeros(1000)})
    spec, result = LOCALIZERS["vgg16"](download=True)
    assert spec.source == _digest(source) and set(result) == set(tensors)
    assert LOCALIZERS["vgg16"](path=source)[0] == spec
    with pytest.raises(UserError, match="give only one"):
        LOCALIZERS["vgg16"](path=source, download=True)
    source.write_bytes(b"other")
    with pytest.raises(UserError, match="not the expected file"):
        LOCALIZERS["vgg16"](path=source)


def test_coco_resnet50_is_the_body_that_torchvision_detects_with(tmp_path, publish):
    """torchvision itself loads the made-up file, with frozen norms and the eps of COCO_V1."""
    torch.manual_seed(0)
    made_up = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    _with_statistics(made_up.backbone.body)
    tensors = {k: v for k, v in made_up.state_dict().items() if "num_batches" not in k}
    variances = [v for k, v in tensors.items() if k.endswith("body.bn1.running_var")]
    variances[0].fill_(1e-5)  # small enough that an eps of 1e-5 would change the features
    entry = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    source = publish(entry, tensors)
    result = LOCALIZERS["coco_resnet50"](download=True)
    reference = detection.fasterrcnn_resnet50_fpn(weights=entry, progress=False).eval()
    measured = reference.transform
    assert result[0] == Localizer(
        "coco_resnet50",
        "torchvision",
        "fasterrcnn_resnet50_fpn",
        tuple(measured.image_mean),
        tuple(measured.image_std),
        32,
        _digest(source),
    )
    with torch.inference_mode():
        target = reference.backbone.body(_normalised())["3"]
    assert target.isfinite().all() and target.std() > 0
    torch.testing.assert_close(_stored(result, tmp_path / "localizer"), target)


# -------------------------------------------------------------------- any of two model libraries


def test_any_torchvision_network_brings_its_own_normalisation(tmp_path, publish, monkeypatch):
    torch.manual_seed(0)
    reference = torchvision.models.squeezenet1_1(weights=None).eval()
    entry = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    own = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    own_transforms = partial(ImageClassification, crop_size=224, mean=own[0], std=own[1])
    monkeypatch.setattr(entry.value, "transforms", own_transforms)
    source = publish(entry, reference.state_dict())
    with pytest.raises(UserError, match="no weights at"):
        LOCALIZERS["torchvision"](arch="squeezenet1_1")
    result = LOCALIZERS["torchvision"](arch="squeezenet1_1", download=True)
    assert result[0] == Localizer(
        "torchvision", "torchvision", "squeezenet1_1", *own, 16, _digest(source)
    )
    assert LOCALIZERS["torchvision"](arch="squeezenet1_1", weights="IMAGENET1K_V1")[0] == result[0]
    target = _input_of(reference.classifier, reference, _normalised(own))
    torch.testing.assert_close(_stored(result, tmp_path / "localizer"), target)


@pytest.mark.parametrize(
    ("arch", "weights", "message"),
    [
        ("resnet18", "V7", r"localizer\.weights: resnet18 has no `V7`; choose from IMAGENET1K_V1"),
        ("vit_b_16", "DEFAULT", "no convolutional trunk"),
        ("fasterrcnn_resnet50_fpn", "DEFAULT", "no model `fasterrcnn_resnet50_fpn`"),
    ],
)
def test_what_torchvision_cannot_offer_is_never_fetched(monkeypatch, arch, weights, message):
    monkeypatch.setattr(torch.hub, "download_url_to_file", pytest.fail)
    with pytest.raises(UserError, match=message):
        LOCALIZERS["torchvision"](arch=arch, weights=weights, download=True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("arch", "pool", "head"),
    [
        ("tf_mobilenetv3_small_minimal_100", "global_pool", "classifier"),
        ("convnext_atto", "head.global_pool", "head.fc"),  # keeps the norm in its head
    ],
)
def test_any_timm_network_brings_its_own_normalisation(tmp_path, arch, pool, head, suffix):
    torch.manual_seed(0)
    reference = _with_statistics(timm.create_model(arch, pretrained=False, num_classes=7))
    path = _write(reference.state_dict(), tmp_path / f"weights{suffix}")
    result = LOCALIZERS["timm"](arch=arch, path=path, sha256=_digest(path))
    config = reference.pretrained_cfg
    assert result[0] == Localizer(
        "timm", "timm", arch, config["mean"], config["std"], 32, _digest(path)
    )
    names = {key.removeprefix("model.") for key in result[1]}
    assert set(reference.state_dict()) - names == {f"{head}.weight", f"{head}.bias"}
    pooling = reference.get_submodule(pool)
    target = _input_of(pooling, reference, _normalised((config["mean"], config["std"])))
    torch.testing.assert_close(_stored(result, tmp_path / "localizer"), target)


def test_timm_weights_of_another_network_are_refused(tmp_path, network):
    path = _write(network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"does not fit the architecture: missing: model\.conv"):
        LOCALIZERS["timm"](arch="resnet10t", path=path)


def test_a_timm_download_needs_a_hash():
    with pytest.raises(UserError, match=r"of timm/resnet10t\.c3_in1k.*localizer\.sha256"):
        LOCALIZERS["timm"](arch="resnet10t", download=True)


# --------------------------------------------------------------------------- an encoder of ours


SMALL = EncoderConfig("resnet10", 8, "small2")


def _exported(folder: Path, mask: str) -> nn.Module:
    """An encoder in `folder`, as a run with this mask leaves it."""
    network = _with_statistics(build_encoder(SMALL, bn_group=2, seed=0))
    spec = InputSpec.for_views(32, input_filter(Choice(mask, {}), 32))
    encoder_file.save(network.state_dict(), SMALL, spec, folder)
    return network


@pytest.mark.parametrize(("mask", "filtered"), [("mean", False), ("high_pass", True)])
def test_an_encoder_gets_the_same_input_as_in_its_evaluation(tmp_path, mask, filtered):
    network = _exported(tmp_path / "encoder", mask)
    weights = tmp_path / "encoder" / "encoder.safetensors"
    result = LOCALIZERS["encoder"](path=tmp_path / "encoder", sha256=_digest(weights))
    spec = result[0]
    assert (spec.name, spec.family, spec.stride) == ("encoder", "salmask", 16)
    assert ((spec.mean, spec.std), spec.source) == (IMAGENET, _digest(weights))
    assert (spec.arch["filter"] is not None) == filtered
    features = _stored(result, tmp_path / "localizer")
    assert features.shape == (2, 64, 4, 4)
    evaluated = encoder_file.load(tmp_path / "encoder", CPU)
    target = _input_of(evaluated.network.avgpool, evaluated, IMAGES)
    torch.testing.assert_close(features, target)
    with torch.inference_mode():  # only the filter makes the features differ
        plain = network(_normalised())
    assert torch.allclose(features.mean(dim=(2, 3)), plain, atol=1e-4) != filtered


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["encoder"].update(width=16), "of another shape: conv1.weight"),
        (lambda d: d["encoder"].update(arch="resnet19"), r"encoder\.json: encoder\.arch: .*19"),
        (lambda d: d.pop("encoder"), r"encoder\.json: encoder: is missing"),
        (lambda d: d["input"].pop("std"), r"encoder\.json: input\.std: is missing"),
        (lambda d: d["input"].update(std=[1, 0, 1]), r"localizer\.std: must be positive"),
        (lambda d: d["input"].update(filter={"kernel": 3}), r"input\.filter\.name: is missing"),
    ],
)
def test_an_encoder_that_is_not_as_described_is_refused(tmp_path, change, message):
    _exported(tmp_path, "none")
    description = json.loads((tmp_path / "encoder.json").read_text())
    change(description)
    (tmp_path / "encoder.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        LOCALIZERS["encoder"](path=tmp_path)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no encoder: localizer\.path must name a folder"):
        LOCALIZERS["encoder"](path=tmp_path)
    _exported(tmp_path, "none")
    with pytest.raises(UserError, match="not the expected file"):
        LOCALIZERS["encoder"](path=tmp_path, sha256="0" * 64)
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights at .*encoder\.safetensors"):
        LOCALIZERS["encoder"](path=tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(UserError, match=r"encoder\.json is damaged"):
        LOCALIZERS["encoder"](path=tmp_path)


# --------------------------------------------------------------------------------- a local file


@pytest.mark.parametrize("prefix", ["", "module.pre."])
@pytest.mark.parametrize("head", [True, False], ids=["with fc", "without fc"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_in_torchvisions_layout_becomes_a_localizer(tmp_path, network, suffix, head, prefix):
    tensors = {k: v for k, v in network.state_dict().items() if head or not k.startswith("fc.")}
    path = _write({f"{prefix}{k}": v for k, v in tensors.items()}, tmp_path / f"weights{suffix}")
    result = LOCALIZERS["file"](path=path, arch="resnet18")
    assert result[0] == Localizer("file", "torchvision", "resnet18", *IMAGENET, 32, _digest(path))
    target = _input_of(network.avgpool, network, _normalised())
    torch.testing.assert_close(_stored(result, tmp_path / "localizer"), target)


def test_a_file_may_want_another_normalisation(tmp_path, network):
    own = (0.1, 0.2, 0.3), (1.0, 0.5, 0.25)
    path = _write(network.state_dict(), tmp_path / "weights.pth")
    result = LOCALIZERS["file"](path=path, arch="resnet18", mean=own[0], std=own[1])
    target = _input_of(network.avgpool, network, _normalised(own))
    torch.testing.assert_close(_stored(result, tmp_path / "localizer"), target)
    with pytest.raises(UserError, match=r"localizer\.std: must be positive"):
        LOCALIZERS["file"](path=path, arch="resnet18", std=(1.0, -1.0, 1.0))


def test_a_wrong_hash_is_refused_and_names_both(tmp_path, network):
    path = _write(network.state_dict(), tmp_path / "weights.safetensors")
    digest = _digest(path)
    assert LOCALIZERS["file"](path=path, arch="resnet18", sha256=digest)[0].source == digest
    with pytest.raises(UserError, match=rf"{digest[:16]}.*expected {'0' * 16}"):
        LOCALIZERS["file"](path=path, arch="resnet18", sha256="0" * 64)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*weights\.pth: localizer\.path must name"):
        LOCALIZERS["file"](path=tmp_path / "weights.pth", arch="resnet18")


def test_a_truncated_trunk_is_reported_with_its_keys(tmp_path, network):
    tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("layer4.")}
    path = _write(tensors, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"missing: layer4\.0\..* and \d+ more$"):
        LOCALIZERS["file"](path=path, arch="resnet18")
