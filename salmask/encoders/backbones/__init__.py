"""The networks that can be trained as encoders.

`EncoderConfig.family` selects one of two modules: `residual` (residual networks of any width) or
`torchvision_models` (the other ConvNets of torchvision). Each defines `build`, `check`,
`feature_dim`, `head_name`, `operations`, `parameter_count` and `is_resnet`.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from salmask.encoders.norms import group_norms
from salmask.params.encoder import EncoderConfig


def build_encoder(
    config: EncoderConfig, bn_group: int = 0, seed: int | None = None, zero_init: bool = False
) -> nn.Module:
    """An encoder with random weights: (B,3,H,W) -> pooled features (B,D).

    Its forward pass draws no random numbers.

    Args:
        config: the architecture.
        bn_group: samples that share batch-norm statistics in training; 0 for the whole batch of
            all processes.
        seed: of the initial weights. None draws them from torch's global generator.
        zero_init: whether the residual blocks of ResNets start as the identity (Goyal et al. 2017,
            Sec. 5.1). Other networks ignore it.

    Raises:
        UserError: see `check_encoder`.
    """
    family = _family(config)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return group_norms(family.build(config, zero_init), bn_group)


def check_encoder(config: EncoderConfig) -> None:
    """Raises UserError for an unknown or unsuitable architecture, or a width that it does not
    take. Builds no network."""
    _family(config)


def feature_dim(config: EncoderConfig) -> int:
    """D, the dimension of the pooled features. Raises UserError as `check_encoder` does."""
    return int(_family(config).feature_dim(config))


def head_name(config: EncoderConfig) -> str:
    """Dotted name of the classifier in published weights of the architecture. Encoders do not have
    it. Raises UserError as `check_encoder` does."""
    return str(_family(config).head_name(config))


def is_resnet(config: EncoderConfig) -> bool:
    """Whether the network has the stages layer1 to layer4 of a ResNet, as detection needs. Raises
    UserError as `check_encoder` does."""
    return bool(_family(config).is_resnet(config))


def operations(config: EncoderConfig, side: int) -> float:
    """Floating-point operations of a forward pass of one image of `side` px, as torch's
    `FlopCounterMode` counts them: two per multiply-add. Raises UserError as `check_encoder` does.
    """
    return float(_family(config).operations(config, side))


def parameter_count(config: EncoderConfig) -> int:
    """Number of trainable parameters. Raises UserError as `check_encoder` does."""
    return int(_family(config).parameter_count(config))


def dry_run(network: nn.Module, height: int, width: int) -> tuple[int, ...]:
    """The shape of `network(images)` for images (1,3,height,width), from shapes alone.

    Computes on the meta device and leaves the network as it is.
    """
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: value.to("meta") for name, value in state.items()}
    images = torch.zeros(1, 3, height, width, device="meta")
    output: Tensor = functional_call(network, shapes, (images,))
    return tuple(output.shape)


def _family(config: EncoderConfig) -> Any:
    """The module that builds the network, after its check of the configuration. Imported here,
    because a stage's digest covers the selected one only."""
    family = import_module(f"{__name__}.{config.family}")
    family.check(config)
    return family
