"""Parts of a detector's architecture that are checked without building a network."""

from typing import Literal

from salmask.encoders.backbones import is_resnet
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig

Norm = Literal["sync", "local", "frozen"]
ANCHORS = (32, 64, 128, 256, 512)  # px


def check_trunk(config: EncoderConfig) -> None:
    """Raises UserError when no detector can be built around an encoder."""
    if not is_resnet(config):
        raise UserError(
            f"encoder.arch: {config.arch} has no layer1 to layer4, which a detector needs: choose "
            "a residual network (resnet50, resnext50_32x4d, ...)"
        )
