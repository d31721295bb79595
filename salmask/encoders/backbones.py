"""Encoders: residual networks at any width and torchvision's other ConvNets, with stems for small
images."""

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import StochasticDepth

from salmask.encoders.norms import group_norms
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
_REFERENCE_WIDTH = 64  # what torchvision builds
_SIDE = 256  # px of a dry run: every network still has a map of several cells at its end

# Of torchvision's modules, those whose networks pool globally, and the layer that comes after.
_HEADS = {
    "convnext": "classifier.2",  # after a layer norm and the flattening, which stay
    "densenet": "classifier",
    "efficientnet": "classifier",
    "mnasnet": "classifier",
    "mobilenetv2": "classifier",
    "mobilenetv3": "classifier",
    "regnet": "fc",
    "resnet": "fc",
    "shufflenetv2": "fc",
}
_NO_POOL = "does not end in a global average pool but in layers for a map of one size"
_TRANSFORMER = "is a transformer, not a ConvNet"
_UNFIT = {
    "alexnet": _NO_POOL,
    "googlenet": "has further classifiers at its side, which no framework here trains",
    "inception": "has a further classifier at its side, which no framework here trains",
    "maxvit": _TRANSFORMER,
    "squeezenet": "does not end in a global average pool of features but of class scores",
    "swin_transformer": _TRANSFORMER,
    "vgg": _NO_POOL,
    "vision_transformer": _TRANSFORMER,
}
_CHOOSE = "choose e.g. resnet50, convnext_tiny, regnet_y_1_6gf or efficientnet_b0"


def build_encoder(
    config: EncoderConfig, bn_group: int = 0, seed: int | None = None, zero_init: bool = False
) -> nn.Module:
    """An encoder with random weights: (B,3,H,W) -> pooled features (B,D).

    bn_group: samples that share training statistics, 0 for the whole batch of all processes. seed:
    of the weights; without one, torch's global generator decides. zero_init: residual blocks of
    ResNets begin as the identity (Goyal et al. 2017, 5.1); other networks ignore it. Nothing random
    happens in a forward pass. Raises UserError for a network that there is not or does not fit.
    """
    build = _Residual if config.arch in LAYERS else _of_torchvision
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return group_norms(build(config, zero_init), bn_group)


def feature_dim(config: EncoderConfig) -> int:
    """D of an encoder's pooled features. Raises UserError as `build_encoder` does."""
    with torch.device("meta"):
        return dry_run(build_encoder(config).eval(), _SIDE, _SIDE)[1]


def head_name(arch: str) -> str:
    """The classifier that published weights of a network end in, by its name there, and that an
    encoder lacks. Raises UserError as `build_encoder` does."""
    return "fc" if arch in LAYERS else _HEADS[_family(arch)]


def dry_run(network: nn.Module, height: int, width: int) -> tuple[int, ...]:
    """The shape of `network`'s output for (1,3,height,width), without computing or changing it."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: value.to("meta") for name, value in state.items()}
    images = torch.zeros(1, 3, height, width, device="meta")
    found: Tensor = functional_call(network, shapes, (images,))
    return tuple(found.shape)


class _Residual(ResNet):
    """torchvision's ResNet with a first stage of `width` channels. Same parameter names."""

    def __init__(self, config: EncoderConfig, zero_init: bool) -> None:
        self.width = config.width
        block, layers = LAYERS[config.arch]
        super().__init__(block, layers, zero_init_residual=zero_init)
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, self.width, 7, stride=2, padding=3, bias=False)
        else:
            stride = 2 if config.stem == "small2" else 1
            self.conv1 = nn.Conv2d(3, self.width, 3, stride=stride, padding=1, bias=False)
            self.maxpool = nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(self.width)
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):  # type: ignore[no-untyped-def]
        if planes == _REFERENCE_WIDTH:  # the first stage: forget the stem that was built before it
            self.inplanes = self.width
        return super()._make_layer(
            block, planes * self.width // _REFERENCE_WIDTH, blocks, stride, dilate
        )


def _of_torchvision(config: EncoderConfig, zero_init: bool) -> nn.Module:
    family = _family(config.arch)
    if config.width != _REFERENCE_WIDTH:
        raise UserError(
            f"encoder.width belongs to residual networks ({', '.join(LAYERS)}): "
            f"{config.arch} takes {_REFERENCE_WIDTH} alone, got {config.width}"
        )
    options = {"zero_init_residual": zero_init} if family == "resnet" else {}
    with _ListsOnCpu():
        network = torchvision.models.get_model(config.arch, weights=None, **options)
    network.set_submodule(_HEADS[family], nn.Identity())
    if family == "mnasnet":  # its own class loads no state without torch's metadata (safetensors)
        parts = {"avgpool": nn.AdaptiveAvgPool2d(1), "classifier": nn.Flatten()}
        network = nn.Sequential(OrderedDict(layers=network.layers, **parts))
    for layer in network.modules():
        if isinstance(layer, StochasticDepth):
            layer.p = 0.0  # what draws in a forward pass does not resume to the same bytes
    if config.stem != "imagenet":
        _keep_resolution(network, first=1 if config.stem == "small" else 2)
    return network


def _family(arch: str) -> str:
    """The module of torchvision that a network comes from. Raises UserError if it will not do."""
    models = torchvision.models
    families = {
        name: models.get_model_builder(name).__module__.rpartition(".")[2]
        for name in models.list_models(module=models)  # classifiers; others would fetch weights
    }
    if arch not in families:
        fitting = {*LAYERS, *(name for name, family in families.items() if family in _HEADS)}
        close = ", ".join(difflib.get_close_matches(arch, sorted(fitting), n=4))
        advice = f"did you mean {close}?" if close else _CHOOSE
        raise UserError(f"encoder.arch: there is no network `{arch}`; {advice}")
    if families[arch] not in _HEADS:
        reason = _UNFIT.get(families[arch], "is of a family that is not known to fit")
        raise UserError(f"encoder.arch: {arch} {reason}; {_CHOOSE}")
    return families[arch]


class _ListsOnCpu(TorchFunctionMode):
    """Lets RegNet, which computes its widths with tensors, be built on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        place = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **place | dict(kwargs or {}))


def _keep_resolution(network: nn.Module, first: int) -> None:
    """Takes the second halving of resolution out of a network, and with `first` 1 the first too.

    As the residual networks' small stems do: 3x3 with stride `first`, and no pooling. All branches
    of a block follow, since what counts is the resolution that a layer sees.
    """
    strided = {name: layer for name, layer in network.named_modules() if _stride(layer) > 1}
    seen: dict[nn.Module, int] = {}  # what the input's resolution has been divided by

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer] = _SIDE // given[0].shape[-1]

    def becomes(divisor: int) -> int:
        return max(min(divisor, first), divisor * first // 4)

    hooks = [layer.register_forward_pre_hook(note) for layer in strided.values()]
    dry_run(network, _SIDE, _SIDE)
    for hook in hooks:
        hook.remove()
    for name, layer in strided.items():
        stride = becomes(seen[layer] * _stride(layer)) // becomes(seen[layer])
        if not isinstance(layer, nn.Conv2d):
            if stride == 1:
                network.set_submodule(name, nn.Identity())
        elif seen[layer] == 1 and layer.kernel_size[0] > 3:
            network.set_submodule(name, _stem(layer, stride))
        else:
            layer.stride = (stride, stride)


def _stem(replaced: nn.Conv2d, stride: int) -> nn.Conv2d:
    """A 3x3 convolution in place of a larger one. A norm follows, so that its scale is free."""
    bias = replaced.bias is not None
    conv = nn.Conv2d(3, replaced.out_channels, 3, stride=stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _stride(layer: nn.Module) -> int:
    """Of convolutions and pools, else 1."""
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1
    return layer.stride[0] if isinstance(layer.stride, tuple) else layer.stride
