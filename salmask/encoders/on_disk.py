"""A trained encoder on disk: encoder.safetensors, and encoder.json that says how to feed it; with
the head that it learned through, and the masker if its mask learned too."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from salmask.data.views import IMAGENET_MEAN, IMAGENET_STD, Triple, normalise
from salmask.devices import place
from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import from_weights
from salmask.errors import UserError
from salmask.files import write_json, write_tensors
from salmask.masks import fill
from salmask.masks.adios import Masker
from salmask.masks.strategies import LEARNED, input_filter, options_of
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.shapes import Wiring

_MASKER, _PROJECTOR = "masker.safetensors", "projector.safetensors"
_WEIGHTS, _DESCRIPTION = "encoder.safetensors", "encoder.json"
_SHORTER = 256 / 224  # the evaluation view: shorter side to this times the size, centre crop


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes an encoder's input. size, shorter: px. filter: what `input_filter`
    resolved, or None. mean, std: of inputs in [0,1]."""

    size: int
    shorter: int
    filter: dict[str, Any] | None
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def prepared(self, images: Tensor) -> Tensor:
        """What the network itself sees of images in [0,1]: normalised, and filtered if it has to
        be. Neither is in the weights."""
        images = normalise(images, self.mean, self.std)
        if self.filter is not None:
            images = fill.high_pass(images, self.filter["kernel"], self.filter["sigma"])
        return images


class Encoder(nn.Module):
    """The whole way from pixels to features: (B,3,S,S) float32 in [0,1] -> (B,D) float32."""

    def __init__(self, network: nn.Module, config: EncoderConfig, spec: InputSpec) -> None:
        super().__init__()
        self.network, self.config, self.spec = network, config, spec

    def forward(self, images: Tensor) -> Tensor:
        images = self.prepared(images)
        return self.network(images.contiguous(memory_format=torch.channels_last)).float()

    def prepared(self, images: Tensor) -> Tensor:
        """As `InputSpec.prepared`."""
        return self.spec.prepared(images)


def save(network: nn.Module, config: RunConfig, folder: Path) -> None:
    """Writes what a run trained: its encoder's weights and its description."""
    side = config.view.size
    spec = InputSpec(side, shorter_side(side), input_filter(config.mask, side))
    write(network.state_dict(), config.encoder, spec, folder)


def write(
    weights: Mapping[str, Tensor],
    config: EncoderConfig,
    spec: InputSpec,
    folder: Path,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Writes encoder.safetensors and encoder.json. source: where weights that were not trained
    here come from."""
    write_tensors(folder / _WEIGHTS, weights)
    description = {
        "encoder": asdict(config),
        "features": feature_dim(config),
        "input": {
            "size": spec.size,
            "shorter": spec.shorter,
            "range": [0, 1],
            "mean": spec.mean,
            "std": spec.std,
            "filter": spec.filter,
        },
    }
    write_json(folder / _DESCRIPTION, description | ({"source": source} if source else {}))


def shorter_side(size: int) -> int:
    """px that an image's shorter side is resized to before its centre crop of `size` px."""
    return round(size * _SHORTER)


def load(folder: Path, device: torch.device) -> Encoder:
    """The encoder in `folder`, in eval mode. Raises UserError when it is missing or its weights
    do not match the description."""
    encoder = describe(folder)
    weights = load_file(folder / _WEIGHTS)
    try:
        encoder.network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder / _WEIGHTS} does not fit {_DESCRIPTION}: {error}") from None
    return _ready(encoder, device)


def save_projector(framework: nn.Module, folder: Path) -> None:
    """Writes the framework's `projector` beside its encoder; an empty head if it has none."""
    head = getattr(framework, "projector", nn.Sequential())
    write_tensors(folder / _PROJECTOR, head.state_dict())


def load_projector(folder: Path, device: torch.device) -> nn.Module:
    """The head that stood on the encoder in `folder` while it learned: (B,D) -> (B,P), in eval
    mode. Raises UserError where there is none, as beside encoders from elsewhere."""
    try:
        weights = load_file(folder / _PROJECTOR)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {_PROJECTOR}: run `dvc repro pretrain`") from None
    return from_weights(weights).to(device)


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
        found = json.loads((folder / _DESCRIPTION).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no encoder: run `dvc repro pretrain`") from None
    config = EncoderConfig(**found["encoder"])
    wanted = found["input"]
    mean, std = tuple(wanted["mean"]), tuple(wanted["std"])
    spec = InputSpec(wanted["size"], wanted["shorter"], wanted["filter"], mean, std)
    return Encoder(build_encoder(config, seed=seed), config, spec)


def _ready(encoder: Encoder, device: torch.device) -> Encoder:
    return place(encoder.eval().requires_grad_(False), device)
