"""Frozen networks up to their last feature map."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salmask.encoders.backbones import build_encoder, dry_run
from salmask.errors import UserError
from salmask.filters import high_pass
from salmask.params.encoder import EncoderConfig

Arch = str | Mapping[str, Any]
Triple = tuple[float, float, float]
FASTER_RCNN = "fasterrcnn_resnet50_fpn"
LITE0 = "tf_efficientnet_lite0"

_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_TRUNKS = (  # the layers up to the last feature map, by torchvision's names
    ("features",),
    ("layers",),
    ("stem", "trunk_output"),
    _RESNET,
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
)
_POOLING_AND_HEAD = {"avgpool", "classifier", "fc"}
_NO_TRUNK = "has no convolutional trunk for SCDA"


@dataclass(frozen=True)
class Localizer:
    """Description of a localizer, as in localizer.json.

    Args:
        name: of the localizer in params.yaml.
        family: library that defines the architecture.
        arch: name of the network there; for `salmask`, the entries `encoder` and input `filter` of
            encoder.json.
        mean: of each channel, for values in [0,1].
        std: of each channel, for values in [0,1].
        stride: px of the input per cell of the map.
        source: sha256 of the original weights file.
    """

    name: str
    family: Literal["timm", "torchvision", "salmask"]
    arch: Arch
    mean: Triple
    std: Triple
    stride: int
    source: str


class Trunk(nn.Module):
    """Normalisation and feature layers: (B,3,S,S) in [0,1] -> (B,D,S/stride,S/stride)."""

    mean: Tensor
    std: Tensor

    def __init__(self, localizer: Localizer) -> None:
        super().__init__()
        self.layers = build_layers(localizer.family, localizer.arch)
        self.register_buffer("mean", torch.tensor(localizer.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(localizer.std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers((images - self.mean) / self.std)


class _TimmFeatures(nn.Module):
    """A model of timm without its head: (B,3,H,W) -> (B,D,U,V).

    `heads` are the names of the head in files for this model.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        import timm  # imported here: it takes seconds

        names = timm_config(arch).get("classifier", ())
        self.heads = (names,) if isinstance(names, str) else tuple(names)
        if arch == LITE0:  # stored with its unused head, so that existing files stay the same
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
    """timm's description of its weights for `arch`: `mean`, `std`, `classifier`, `hf_hub_id`...

    Raises UserError for an unknown name. Names that make timm search its model hub count as
    unknown.
    """
    import timm

    try:
        config: Any = timm.get_pretrained_cfg(arch, allow_unregistered=False)
    except RuntimeError as error:
        raise UserError(f"localizer.arch: timm has no model `{arch}`: {error}") from None
    return dict(config.to_dict())


def require_classifier(arch: str) -> None:
    """Raises UserError unless torchvision has a classifier of this name."""
    import torchvision

    if arch not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"localizer.arch: torchvision has no model `{arch}` among its classifiers")


def build_layers(family: str, arch: Arch) -> nn.Module:
    """The feature layers of an architecture, in eval mode, with random weights.

    They map normalised images (B,3,H,W) float32 to features (B,D,U,V). Networks of torchvision and
    of this project keep their parameter names (`layer4.0...`, `features.0...`), so that files in
    their layout fit.

    Raises UserError for an unknown name, and for a network that is not a plain sequence of layers
    up to its pooling.
    """
    if isinstance(arch, Mapping):
        return _of_salmask(arch).eval()
    return (_TimmFeatures(arch) if family == "timm" else _of_torchvision(arch)).eval()


def _of_torchvision(arch: str) -> nn.Module:
    import torchvision
    from torchvision.ops import FrozenBatchNorm2d

    if arch == FASTER_RCNN:
        # as torchvision runs COCO_V1: frozen batch norms, and `overwrite_eps(model, 0.0)`
        body = torchvision.models.resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0))
        return nn.Sequential(_children(body, _RESNET))
    require_classifier(arch)
    return nn.Sequential(_up_to_pooling(torchvision.models.get_model(arch, weights=None), arch))


def _of_salmask(arch: Mapping[str, Any]) -> nn.Module:
    config = EncoderConfig(**arch["encoder"])
    try:
        layers = _up_to_pooling(build_encoder(config), config.arch)
    except UserError as error:
        raise UserError(f"encoder.json: {error}") from None
    if options := arch["filter"]:
        layers["filter"] = _HighPass(options["kernel"], options["sigma"])
        layers.move_to_end("filter", last=False)
    return nn.Sequential(layers)


def _up_to_pooling(model: nn.Module, arch: str) -> "OrderedDict[str, nn.Module]":
    """The layers of a torchvision-like network up to its last feature map."""
    names = {name for name, _ in model.named_children()}
    for trunk in _TRUNKS:
        if names.issuperset(trunk) and names - set(trunk) <= _POOLING_AND_HEAD:
            layers = _children(model, trunk)
            if arch.startswith("densenet"):  # its forward method applies one more
                layers["relu"] = nn.ReLU()
            return layers
    raise UserError(f"localizer.arch: {arch} {_NO_TRUNK}")


def _children(model: nn.Module, names: tuple[str, ...]) -> "OrderedDict[str, nn.Module]":
    return OrderedDict((name, model.get_submodule(name)) for name in names)


def head_names(layers: nn.Module) -> tuple[str, ...]:
    """Names of the layers in an architecture's own weights files that follow the trunk."""
    return layers.heads if isinstance(layers, _TimmFeatures) else ("fc", "classifier", "head")


def stride_of(layers: nn.Module, arch: Arch) -> int:
    """Input px per cell of the feature map, measured with two image widths on shapes alone.

    Raises UserError when the output is not (B,D,U,V), or the network rejects these sizes.
    """
    try:
        narrow, wide = (dry_run(layers, 224, width) for width in (224, 672))
    except Exception as error:  # other libraries raise errors of many types
        raise UserError(f"localizer.arch: {arch} {_NO_TRUNK}: {error}") from None
    is_map = len(narrow) == len(wide) == 4 and narrow[:3] == wide[:3] and narrow[3] < wide[3]
    if not is_map:  # tokens, or channels last
        raise UserError(
            f"localizer.arch: {arch} {_NO_TRUNK}: its features are {narrow} for 224x224 px "
            f"and {wide} for 224x672 px"
        )
    return round(448 / (wide[3] - narrow[3]))
