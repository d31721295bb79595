"""Residual networks of any width, with stems for small images.

Only `build` needs torchvision, which it imports itself.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from salmask.params.encoder import EncoderConfig

BLOCKS = {  # of the four stages
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_BASIC = ("resnet10", "resnet18", "resnet34")  # blocks of two 3x3 convolutions; others: bottlenecks
_STEMS = {"imagenet": (7, 2), "small2": (3, 2), "small": (3, 1)}  # kernel and stride
_REFERENCE_WIDTH = 64  # of torchvision's networks


def check(config: EncoderConfig) -> None:
    """Every combination of options is valid."""


def feature_dim(config: EncoderConfig) -> int:
    return 8 * config.width * _expansion(config)


def head_name(config: EncoderConfig) -> str:
    return "fc"


def is_resnet(config: EncoderConfig) -> bool:
    return True


def operations(config: EncoderConfig, side: int) -> int:
    return sum(2 * weights * cells for weights, _, cells in _convolutions(config, side))


def parameter_count(config: EncoderConfig) -> int:
    """A batch norm with two parameters per channel follows each convolution."""
    return sum(weights + 2 * channels for weights, channels, _ in _convolutions(config, 1))


def build(config: EncoderConfig, zero_init: bool) -> nn.Module:
    """torchvision's ResNet with a first stage of `config.width` channels, and its parameter names.

    The order of random draws is part of the result: torchvision's stem is drawn first, then
    replaced.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    class Residual(ResNet):
        def __init__(self) -> None:
            block: Any = BasicBlock if config.arch in _BASIC else Bottleneck
            super().__init__(block, list(BLOCKS[config.arch]), zero_init_residual=zero_init)
            kernel, stride = _STEMS[config.stem]
            self.conv1 = nn.Conv2d(3, config.width, kernel, stride, kernel // 2, bias=False)
            if config.stem != "imagenet":
                self.maxpool = nn.Identity()
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.bn1 = nn.BatchNorm2d(config.width)
            self.fc = nn.Identity()

        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):  # type: ignore[no-untyped-def]
            if planes == _REFERENCE_WIDTH:  # the first stage, which follows the replaced stem
                self.inplanes = config.width
            planes = planes * config.width // _REFERENCE_WIDTH
            return super()._make_layer(block, planes, blocks, stride, dilate)

    return Residual()


def _expansion(config: EncoderConfig) -> int:
    return 1 if config.arch in _BASIC else 4


def _convolutions(config: EncoderConfig, side: int) -> Iterator[tuple[int, int, int]]:
    """(weights, output channels, output cells) of each convolution, for images of `side` px."""
    kernel, stride = _STEMS[config.stem]
    side = -(-side // stride)
    yield 3 * config.width * kernel**2, config.width, side**2
    if config.stem == "imagenet":
        side = -(-side // 2)  # max pooling
    inputs, basic = config.width, config.arch in _BASIC
    for stage, blocks in enumerate(BLOCKS[config.arch]):
        inner = config.width * 2**stage
        outputs = inner * _expansion(config)
        for block in range(blocks):
            before = side
            if stage > 0 and block == 0:
                side = -(-side // 2)
            if basic:
                yield 9 * inputs * inner, inner, side**2
                yield 9 * inner * outputs, outputs, side**2
            else:
                yield inputs * inner, inner, before**2
                yield 9 * inner * inner, inner, side**2
                yield inner * outputs, outputs, side**2
            if block == 0 and (stage > 0 or inputs != outputs):  # the shortcut
                yield inputs * outputs, outputs, side**2
            inputs = outputs
