"""Trained encoders on disk.

A folder holds encoder.safetensors (weights), encoder.json (architecture and input) and, for
encoders that were trained here, projector.safetensors (the projection head of the pretraining).
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD, PerChannel, normalise
from salmask.devices import Precision, inference, place
from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import from_weights
from salmask.encoders.weight_files import non_finite
from salmask.errors import NonFiniteLossError, UserError
from salmask.files import write_json, write_tensors
from salmask.filters import high_pass
from salmask.params.encoder import EncoderConfig
from salmask.stored_files import damage_reported, read_json, read_tensors

_WEIGHTS, _DESCRIPTION = "encoder.safetensors", "encoder.json"
_PROJECTOR = "projector.safetensors"
_SHORTER = 256 / 224  # shorter side of a resized image, as a multiple of its centre crop


@dataclass(frozen=True)
class InputSpec:
    """How to turn an image into the input of an encoder.

    Args:
        size: side of the centre crop in px.
        shorter: shorter side of the resized image in px, before the crop.
        filter: `{"name": "high_pass", "kernel": px, "sigma": px}`, or None.
        mean: of each channel, for values in [0,1].
        std: of each channel, for values in [0,1].
    """

    size: int
    shorter: int
    filter: dict[str, Any] | None
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD

    @classmethod
    def for_views(
        cls, size: int, filter: dict[str, Any] | None, shorter: int | None = None
    ) -> "InputSpec":
        """The input of an encoder that was trained here.

        Args:
            size: side of its training views in px.
            filter: the input filter of its mask, or None.
            shorter: `view.shorter`.
        """
        return cls(size, shorter or shorter_side(size), filter)

    def prepared(self, images: Tensor) -> Tensor:
        """Normalises images in [0,1], and filters them if the encoder needs it: (B,3,S,S) ->
        (B,3,S,S) float32."""
        images = normalise(images, self.mean, self.std)
        if self.filter is not None:
            images = high_pass(images, self.filter["kernel"], self.filter["sigma"])
        return images


class Encoder(nn.Module):
    """A network with its input preparation: (B,3,S,S) float32 in [0,1] -> (B,D) float32.

    Attributes:
        precision: of the network, which `forward` uses unless it is trained.
    """

    precision: Precision = "float32"

    def __init__(self, network: nn.Module, config: EncoderConfig, spec: InputSpec) -> None:
        super().__init__()
        self.network, self.config, self.spec = network, config, spec

    def forward(self, images: Tensor) -> Tensor:
        return self.features(self.spec.prepared(images))

    def features(self, inputs: Tensor) -> Tensor:
        """Prepared inputs (B,3,S,S) float32 -> (B,D) float32."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with nullcontext() if self.training else inference(inputs.device, self.precision):
            return self.network(inputs).float()


def save(
    weights: Mapping[str, Tensor],
    config: EncoderConfig,
    spec: InputSpec,
    folder: Path,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Writes encoder.safetensors and encoder.json.

    Args:
        weights: `state_dict()` of the network.
        config: its architecture.
        spec: its input.
        folder: where to write; created if needed.
        source: origin of weights that were not trained here.

    Raises:
        NonFiniteLossError: a weight is NaN or infinite. Nothing is written.
    """
    if bad := non_finite(weights):
        raise NonFiniteLossError(
            f"the encoder has weights that are NaN or infinite ({bad[0]} and {len(bad) - 1} more): "
            "the training diverged; try a smaller `train.lr` or a longer `train.warmup_epochs`"
        )
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
    """The default shorter side of a resized image in px, for a centre crop of `size` px."""
    return round(size * _SHORTER)


def load(folder: Path, device: torch.device) -> Encoder:
    """The encoder in `folder`, in eval mode, without gradients.

    Raises UserError when it is missing, when a file differs from the record in provenance.json, or
    when the weights do not fit the description.
    """
    encoder = describe(folder)
    try:
        encoder.network.load_state_dict(read_tensors(folder / _WEIGHTS))
    except FileNotFoundError:
        raise UserError(f"{folder / _WEIGHTS} is missing: run `dvc repro pretrain`") from None
    except RuntimeError as error:
        raise UserError(f"{folder / _WEIGHTS} does not fit {_DESCRIPTION}: {error}") from None
    return _ready(encoder, device)


def load_encoder(path: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """A trained encoder, in eval mode, without gradients.

    It maps images (B,3,S,S) float32 in [0,1] to features (B,D) float32. It normalises and filters
    the images itself. `spec.size` is the S of its evaluation.

    Args:
        path: a folder with encoder.json and encoder.safetensors, or that encoder.safetensors.
        device: where the encoder runs.

    Raises:
        UserError: when a file is missing or has changed since it was made, or the weights do not
            fit the description.
    """
    path = Path(path)
    folder = path.parent if path.name == _WEIGHTS else path
    return load(folder, torch.device(device))


def random_like(folder: Path, seed: int, device: torch.device) -> Encoder:
    """An untrained encoder with the architecture and input of the one in `folder`."""
    return _ready(describe(folder, seed), device)


def describe(folder: Path, seed: int = 0) -> Encoder:
    """The encoder that encoder.json describes, with random weights."""
    try:
        description = read_json(folder / _DESCRIPTION)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no encoder: run `dvc repro pretrain`") from None
    with damage_reported(folder / _DESCRIPTION):
        config = EncoderConfig(**description["encoder"])
        spec = TypeAdapter(InputSpec).validate_python(description["input"])
        return Encoder(build_encoder(config, seed=seed), config, spec)


def _ready(encoder: Encoder, device: torch.device) -> Encoder:
    return place(encoder.eval().requires_grad_(False), device)


def save_projector(framework: nn.Module, folder: Path) -> None:
    """Writes the framework's `projector`; an empty head if it has none."""
    head = getattr(framework, "projector", nn.Sequential())
    write_tensors(folder / _PROJECTOR, head.state_dict())


def load_projector(folder: Path, device: torch.device) -> nn.Module:
    """The projection head of the encoder in `folder`: (B,D) -> (B,P), in eval mode.

    Raises UserError when there is none, as with imported encoders.
    """
    try:
        weights = read_tensors(folder / _PROJECTOR)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {_PROJECTOR}: run `dvc repro pretrain`") from None
    try:
        return from_weights(weights).to(device)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder / _PROJECTOR} holds no head: {error}") from None
