"""Small encoders in which every layer affects the features, and their files."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.encoders import on_disk as encoder_file
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import InputSpec
from salmask.params.encoder import EncoderConfig

SMALL = EncoderConfig("resnet10", width=8, stem="small")
FILTER = {"name": "high_pass", "kernel": 5, "sigma": 1.5}


def random_network(config: EncoderConfig, seed: int = 0) -> nn.Module:
    """Random weights and running statistics, so that exchanged layers change the features."""
    network = build_encoder(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 1.5, generator=generator)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_(std=0.2, generator=generator)
            layer.num_batches_tracked.fill_(7)
    return network.eval()


def saved(
    folder: Path, config: EncoderConfig, spec: InputSpec | None = None, seed: int = 0
) -> nn.Module:
    """Writes an encoder as pretraining does; returns its network."""
    network = random_network(config, seed)
    encoder_file.save(network.state_dict(), config, spec or InputSpec(32, 37, None), folder)
    return network


def pictures(count: int = 4, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def features(folder: Path, images: Tensor) -> Tensor:
    """The features (B,D) of the encoder in `folder`."""
    with torch.inference_mode():
        return encoder_file.load(folder, torch.device("cpu"))(images)
