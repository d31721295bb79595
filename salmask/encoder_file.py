"""A trained encoder on disk: encoder.safetensors, and encoder.json that says how to feed it; with
the masker, if its mask learned too."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from salmask.backbones import build_encoder, feature_dim
from salmask.config import EncoderConfig, RunConfig
from salmask.data.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from salmask.devices import place
from salmask.errors import UserError
from salmask.files import write_json, write_tensors
from salmask.masks import fill
from salmask.masks.adios import Masker
from salmask.masks.strategies import LEARNED, input_filter, options_of
from salmask.shapes import Wiring

_MASKER = "masker.safetensors"
_SHORTER = 256 / 224  # the evaluation view: shorter side to this times the size, centre crop


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes an encoder's input. size, shorter: px. filter: what `input_filter`
    resolved, or None."""

    size: int
    shorter: int
    filter: dict[str, Any] | None


class Encoder(nn.Module):
    """The whole way from pixels to features: (B,3,S,S) float32 in [0,1] -> (B,D) float32."""

    def __init__(self, network: nn.Module, config: EncoderConfig, spec: InputSpec) -> None:
        super().__init__()
        self.network, self.config, self.spec = network, config, spec

    def forward(self, images: Tensor) -> Tensor:
        images = normalise(images)
        if self.spec.filter is not None:
            wanted = self.spec.filter
            images = fill.high_pass(images, wanted["kernel"], wanted["sigma"])
        return self.network(images.contiguous(memory_format=torch.channels_last)).float()


def save(network: nn.Module, config: RunConfig, folder: Path) -> None:
    """Writes an encoder's weights and its description."""
    write_tensors(folder / "encoder.safetensors", network.state_dict())
    description = {
        "encoder": asdict(config.encoder),
        "features": feature_dim(config.encoder),
        "input": {
            "size": config.view.size,
            "shorter": round(config.view.size * _SHORTER),
            "range": [0, 1],
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "filter": input_filter(config.mask, config.view.size),
        },
    }
    write_json(folder / "encoder.json", description)


def load(folder: Path, device: torch.device) -> Encoder:
    """The encoder in `folder`, in eval mode. Raises UserError when it is missing or its weights
    do not match the description."""
    encoder = describe(folder)
    weights = load_file(folder / "encoder.safetensors")
    try:
        encoder.network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{folder}/encoder.safetensors does not fit encoder.json: {error}"
        ) from None
    return _ready(encoder, device)


def save_masker(masker: Masker, folder: Path) -> None:
    """Writes the part of a mask that learned beside the encoder that it learned against."""
    write_tensors(folder / _MASKER, masker.state_dict())


def load_masker(folder: Path, config: RunConfig) -> Masker | None:
    """The masker that a run left in `folder`, on the CPU in eval mode; None for a run whose mask
    does not learn. Raises UserError when it should be there and is not, or does not fit."""
    if config.mask.name not in LEARNED:
        return None
    masker = Masker(config.view.size, Wiring("any"), **options_of(config.mask))
    try:
        masker.load_state_dict(load_file(folder / _MASKER))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no masker: run `dvc repro pretrain`") from None
    except RuntimeError as error:
        raise UserError(f"{folder / _MASKER} does not fit the run's `mask:`: {error}") from None
    return masker.eval().requires_grad_(False)


def random_like(folder: Path, seed: int, device: torch.device) -> Encoder:
    """An untrained encoder that differs from the one in `folder` by its weights alone."""
    return _ready(describe(folder, seed), device)


def describe(folder: Path, seed: int = 0) -> Encoder:
    """The encoder that encoder.json describes, with random weights."""
    try:
        found = json.loads((folder / "encoder.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no encoder: run `dvc repro pretrain`") from None
    config = EncoderConfig(**found["encoder"])
    wanted = found["input"]
    spec = InputSpec(wanted["size"], wanted["shorter"], wanted["filter"])
    return Encoder(build_encoder(config, seed=seed), config, spec)


def _ready(encoder: Encoder, device: torch.device) -> Encoder:
    return place(encoder.eval().requires_grad_(False), device)
