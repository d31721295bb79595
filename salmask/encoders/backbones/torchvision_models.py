"""torchvision's ConvNets as encoders, with stems for small images."""

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from salmask.encoders.backbones import dry_run
from salmask.errors import UserError
from salmask.params.encoder import RESIDUAL, EncoderConfig

_WIDTH = 64  # the only value of `encoder.width` here
_SIDE = 256  # px of a dry run: every network ends in a map of several cells

# Families that pool globally (modules of torchvision.models), and their classifier.
_HEADS = {
    "convnext": "classifier.2",  # follows a layer norm and the flattening, which the encoder keeps
    "densenet": "classifier",
    "efficientnet": "classifier",
    "mnasnet": "classifier",
    "mobilenetv2": "classifier",
    "mobilenetv3": "classifier",
    "regnet": "fc",
    "resnet": "fc",
    "shufflenetv2": "fc",
}
_NO_POOL = "does not end in global average pooling but in layers for a map of one size"
_TRANSFORMER = "is a transformer, not a ConvNet"
_UNSUITABLE = {
    "alexnet": _NO_POOL,
    "googlenet": "has auxiliary classifiers, which no framework here trains",
    "inception": "has an auxiliary classifier, which no framework here trains",
    "maxvit": _TRANSFORMER,
    "squeezenet": "does not end in global average pooling of features but of class scores",
    "swin_transformer": _TRANSFORMER,
    "vgg": _NO_POOL,
    "vision_transformer": _TRANSFORMER,
}
_CHOOSE = "choose e.g. resnet50, convnext_tiny, regnet_y_1_6gf or efficientnet_b0"


def check(config: EncoderConfig) -> None:
    _module(config.arch)
    if config.width != _WIDTH:
        raise UserError(
            f"encoder.width applies to residual networks ({', '.join(RESIDUAL)}): "
            f"{config.arch} takes {_WIDTH} only, got {config.width}"
        )


def feature_dim(config: EncoderConfig) -> int:
    return dry_run(_on_meta(config), _SIDE, _SIDE)[1]


def head_name(config: EncoderConfig) -> str:
    return _HEADS[_module(config.arch)]


def is_resnet(config: EncoderConfig) -> bool:
    return _module(config.arch) == "resnet"


def operations(config: EncoderConfig, side: int) -> int:
    network = _on_meta(config)  # not counted: it runs the network when it changes the stem
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops())


def parameter_count(config: EncoderConfig) -> int:
    return sum(parameter.numel() for parameter in _on_meta(config).parameters())


def build(config: EncoderConfig, zero_init: bool) -> nn.Module:
    module = _module(config.arch)
    options = {"zero_init_residual": zero_init} if module == "resnet" else {}
    with _NewTensorsOnCpu():
        network = torchvision.models.get_model(config.arch, weights=None, **options)
    network.set_submodule(_HEADS[module], nn.Identity())
    if module == "mnasnet":  # its class loads no state without torch's metadata (safetensors)
        parts = {"avgpool": nn.AdaptiveAvgPool2d(1), "classifier": nn.Flatten()}
        network = nn.Sequential(OrderedDict(layers=network.layers, **parts))
    for layer in network.modules():
        if isinstance(layer, StochasticDepth):
            layer.p = 0.0  # a run that draws in its forward pass cannot resume to the same bytes
    if config.stem != "imagenet":
        _keep_resolution(network, first=1 if config.stem == "small" else 2)
    return network


def _on_meta(config: EncoderConfig) -> nn.Module:
    with torch.device("meta"):
        return build(config, zero_init=False).eval()


@cache
def _modules() -> dict[str, str]:
    """torchvision's classifiers, and the module of torchvision.models that defines each."""
    models = torchvision.models
    # list_models() without `module` would include detectors, which download their backbones
    return {
        name: models.get_model_builder(name).__module__.rpartition(".")[2]
        for name in models.list_models(module=models)
    }


def _module(arch: str) -> str:
    """The module of torchvision.models of a suitable network. Raises UserError for others."""
    modules = _modules()
    if arch not in modules:
        suitable = {*RESIDUAL, *(name for name, module in modules.items() if module in _HEADS)}
        close = ", ".join(difflib.get_close_matches(arch, sorted(suitable), n=4))
        raise UserError(
            f"encoder.arch: there is no network `{arch}`; "
            + (f"did you mean {close}?" if close else _CHOOSE)
        )
    if modules[arch] not in _HEADS:
        reason = _UNSUITABLE.get(modules[arch], "belongs to an unsupported family")
        raise UserError(f"encoder.arch: {arch} {reason}; {_CHOOSE}")
    return modules[arch]


class _NewTensorsOnCpu(TorchFunctionMode):
    """Creates new tensors on the CPU, so that RegNet, which computes its widths with tensors, can
    be built on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **device | dict(kwargs or {}))


def _keep_resolution(network: nn.Module, first: int) -> None:
    """Removes downsampling from the start of a network, as the residual networks' small stems do.

    The second halving of the resolution is removed, and with `first=1` the first one too. A large
    kernel on the image becomes 3x3. Each strided layer is changed according to the resolution of
    its input, so that all branches of a block agree.
    """
    strided = {name: layer for name, layer in network.named_modules() if _stride(layer) > 1}
    divisors: dict[nn.Module, int] = {}  # image side divided by the side of the layer's input

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        divisors[layer] = _SIDE // inputs[0].shape[-1]

    def new_divisor(divisor: int) -> int:
        return max(min(divisor, first), divisor * first // 4)

    hooks = [layer.register_forward_pre_hook(note) for layer in strided.values()]
    dry_run(network, _SIDE, _SIDE)
    for hook in hooks:
        hook.remove()
    for name, layer in strided.items():
        divisor = divisors[layer]
        stride = new_divisor(divisor * _stride(layer)) // new_divisor(divisor)
        if not isinstance(layer, nn.Conv2d):
            if stride == 1:
                network.set_submodule(name, nn.Identity())
        elif divisor == 1 and layer.kernel_size[0] > 3:
            network.set_submodule(name, _stem(layer, stride))
        else:
            layer.stride = (stride, stride)


def _stem(replaced: nn.Conv2d, stride: int) -> nn.Conv2d:
    """A 3x3 convolution in place of a larger one. Its scale does not matter: a norm follows."""
    bias = replaced.bias is not None
    conv = nn.Conv2d(3, replaced.out_channels, 3, stride=stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _stride(layer: nn.Module) -> int:
    """The stride of a convolution or pooling layer; 1 for other layers."""
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1
    return layer.stride[0] if isinstance(layer.stride, tuple) else layer.stride
