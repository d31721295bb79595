"""Frozen networks up to their last feature map: which layers, and how many pixels a cell spans."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.ops import FrozenBatchNorm2d

from salmask.encoders.backbones import build_encoder, dry_run
from salmask.errors import UserError
from salmask.filters import high_pass
from salmask.params.encoder import EncoderConfig

Arch = str | Mapping[str, Any]
Triple = tuple[float, float, float]
FASTER_RCNN = "fasterrcnn_resnet50_fpn"
LITE0 = "tf_efficientnet_lite0"

_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_TRUNKS = (  # the layers that lead to the last feature map, by torchvision's names
    ("features",),
    ("layers",),
    ("stem", "trunk_output"),
    _RESNET,
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
)
_POOLING_AND_HEAD = {"avgpool", "classifier", "fc"}
_NO_TRUNK = "has no convolutional trunk that SCDA could read"


@dataclass(frozen=True)
class Localizer:
    """What is needed to run a localizer. family: whose architecture. arch: its name there; of
    `salmask`, encoder.json's `encoder` and its input `filter`. mean, std: of inputs in [0,1].
    stride: px of the input per cell of the map. source: sha256 of the original file."""

    name: str
    family: Literal["timm", "torchvision", "salmask"]
    arch: Arch
    mean: Triple
    std: Triple
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
    """timm's model without its head: (B,3,H,W) -> (B,D,U,V). heads: where its files keep that."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        names = timm_config(arch).get("classifier", ())
        self.heads = (names,) if isinstance(names, str) else tuple(names)
        if arch == LITE0:  # has always been stored with its unused head: its bytes shall not change
            self.model, self.heads = timm.create_model(arch, pretrained=False), ()
        else:
            self.model = timm.create_model(arch, pretrained=False, num_classes=0)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features


class _HighPass(nn.Module):
    def __init__(self, kernel: int, sigma: float) -> None:
        super().__init__()
        self.kernel, self.sigma = kernel, sigma

    def forward(self, images: Tensor) -> Tensor:
        return high_pass(images, self.kernel, self.sigma)


def timm_config(arch: str) -> dict[str, Any]:
    """timm's description of its weights for `arch`: `mean`, `std`, `classifier`, `hf_hub_id`.

    Raises UserError for a name that there is not, and so for those that would make timm look on
    its hub.
    """
    try:
        found: Any = timm.get_pretrained_cfg(arch, allow_unregistered=False)
    except RuntimeError as error:
        raise UserError(f"localizer.arch: timm has no model `{arch}`: {error}") from None
    return dict(found.to_dict())


def require_classifier(arch: str) -> None:
    """Raises UserError unless torchvision has a classifier of this name."""
    if arch not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"localizer.arch: torchvision has no model `{arch}` among its classifiers")


def build_layers(family: str, arch: Arch) -> nn.Module:
    """The feature layers of an architecture, in eval mode, with random weights:
    (B,3,H,W) normalised float32 -> (B,D,U,V).

    torchvision's and our own models keep their key names (`layer4.0...` or `features.0...`), so
    that a file in their layout fits. Raises UserError for a name that there is not, and for a
    model that is not a plain chain of layers up to its pooling.
    """
    if isinstance(arch, Mapping):
        return _of_salmask(arch).eval()
    return (_TimmFeatures(arch) if family == "timm" else _of_torchvision(arch)).eval()


def _of_torchvision(arch: str) -> nn.Module:
    if arch == FASTER_RCNN:
        # as torchvision runs COCO_V1: frozen batch norms, and `overwrite_eps(model, 0.0)`
        body = torchvision.models.resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0))
        return nn.Sequential(_chain(body, _RESNET))
    require_classifier(arch)
    return nn.Sequential(_up_to_pooling(torchvision.models.get_model(arch, weights=None), arch))


def _of_salmask(arch: Mapping[str, Any]) -> nn.Module:
    config = EncoderConfig(**arch["encoder"])
    try:
        layers = _up_to_pooling(build_encoder(config), config.arch)
    except UserError as error:
        raise UserError(f"encoder.json: {error}") from None
    if wanted := arch["filter"]:
        layers["filter"] = _HighPass(wanted["kernel"], wanted["sigma"])
        layers.move_to_end("filter", last=False)
    return nn.Sequential(layers)


def _up_to_pooling(model: nn.Module, arch: str) -> "OrderedDict[str, nn.Module]":
    """The layers of torchvision's network, ours included, that lead to its last feature map."""
    names = {name for name, _ in model.named_children()}
    for trunk in _TRUNKS:
        if names.issuperset(trunk) and names - set(trunk) <= _POOLING_AND_HEAD:
            layers = _chain(model, trunk)
            if isinstance(model, DenseNet):  # its forward applies one more
                layers["relu"] = nn.ReLU()
            return layers
    raise UserError(f"localizer.arch: {arch} {_NO_TRUNK}")


def _chain(model: nn.Module, names: tuple[str, ...]) -> "OrderedDict[str, nn.Module]":
    return OrderedDict((name, model.get_submodule(name)) for name in names)


def head_names(layers: nn.Module) -> tuple[str, ...]:
    """Names of the layers in an architecture's own files that are no part of its trunk."""
    return layers.heads if isinstance(layers, _TimmFeatures) else ("fc", "classifier", "head")


def stride_of(layers: nn.Module, arch: Arch) -> int:
    """Input px per cell of the feature map, by how many columns 448 px more of width add.

    On shapes alone, without computing. Raises UserError when the output is not (B,D,U,V), or when
    the model takes no such sizes.
    """
    try:
        narrow, wide = (dry_run(layers, 224, width) for width in (224, 672))
    except Exception as error:  # whatever a model of others raises on a size it cannot take
        raise UserError(f"localizer.arch: {arch} {_NO_TRUNK}: {error}") from None
    is_map = len(narrow) == len(wide) == 4 and narrow[:3] == wide[:3] and narrow[3] < wide[3]
    if not is_map:  # tokens, or channels last
        raise UserError(
            f"localizer.arch: {arch} {_NO_TRUNK}: its features are {narrow} for 224x224 px "
            f"and {wide} for 224x672 px"
        )
    return round(448 / (wide[3] - narrow[3]))


# --------------------------------------------------------------------- how lite0's file says it

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


def lite0_key(key: str) -> str:
    """A key of the package's file as timm's, under our wrapper's prefix."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join(["model", _LITE0_OUTER[parts[0]], *parts[1:]])
    index, stage = int(parts[1]), 0
    while index >= _LITE0_REPEATS[stage]:
        index, stage = index - _LITE0_REPEATS[stage], stage + 1
    layer = (_LITE0_BLOCK if stage else _LITE0_FIRST)[parts[2]]
    return ".".join(["model", "blocks", str(stage), str(index), layer, *parts[3:]])
