"""The section `encoder:` of params.yaml."""

from typing import Literal

from pydantic.dataclasses import dataclass

from salmask.params.ranges import Width
from salmask.params.values import STRICT

RESIDUAL = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True, config=STRICT)
class EncoderConfig:
    """Options of `encoder:`.

    Args:
        arch: one of our residual networks (resnet10 to resnet152), or a ConvNet of torchvision that
            ends in global average pooling.
        width: channels of the first stage of a residual network. The papers use 64, and networks
            of torchvision accept 64 only.
        stem: `imagenet` (as published: 7x7 with stride 2, max pooling), `small` (3x3 with stride 1:
            maps of 4 times the side) or `small2` (3x3 with stride 2: maps of twice the side).
    """

    arch: str = "resnet50"
    width: Width = 64
    stem: Literal["imagenet", "small", "small2"] = "imagenet"

    @property
    def family(self) -> str:
        """The module of `salmask.encoders.backbones` that builds the network."""
        return "residual" if self.arch in RESIDUAL else "torchvision_models"
