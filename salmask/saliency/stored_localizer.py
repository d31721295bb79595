"""A localizer on disk: weights.safetensors and localizer.json in one folder."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from salmask.encoders import weight_files
from salmask.errors import UserError
from salmask.files import write_json, write_tensors
from salmask.saliency.trunks import Localizer, Trunk

_WEIGHTS, _DESCRIPTION = "weights.safetensors", "localizer.json"


def save(localizer: Localizer, tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes the weights and the description of a localizer."""
    write_tensors(folder / _WEIGHTS, tensors)
    write_json(folder / _DESCRIPTION, asdict(localizer))


def load(folder: Path, device: torch.device) -> tuple[Localizer, Trunk]:
    """The localizer in `folder`, ready to run.

    Raises UserError when it is missing, or when its weights do not fit.
    """
    if not (folder / _DESCRIPTION).is_file():
        raise UserError(f"{folder} holds no localizer: run `dvc repro localizer`")
    fields = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    localizer = Localizer(**fields | {key: tuple(fields[key]) for key in ("mean", "std")})
    trunk = Trunk(localizer)
    path = folder / _WEIGHTS
    tensors = weight_files.fitted(weight_files.read(path), trunk.layers.state_dict(), path)
    trunk.layers.load_state_dict(tensors)
    return localizer, trunk.to(device)
