"""A localizer on disk: weights.safetensors and localizer.json in one folder."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from salmask.encoders import weight_files
from salmask.errors import UserError
from salmask.files import write_json, write_tensors
from salmask.saliency.trunks import Localizer, Trunk
from salmask.stored_files import damage_reported, read_json, read_tensors

_WEIGHTS, _DESCRIPTION = "weights.safetensors", "localizer.json"


def save(localizer: Localizer, tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes the weights and the description of a localizer."""
    write_tensors(folder / _WEIGHTS, tensors)
    write_json(folder / _DESCRIPTION, asdict(localizer))


def load(folder: Path, device: torch.device) -> tuple[Localizer, Trunk]:
    """The localizer in `folder`, ready to run.

    Raises UserError when it is missing, or when its weights do not fit.
    """
    path = folder / _WEIGHTS
    try:
        fields, tensors = read_json(folder / _DESCRIPTION), read_tensors(path)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro localizer`") from None
    with damage_reported(folder / _DESCRIPTION):
        localizer = Localizer(**fields | {key: tuple(fields[key]) for key in ("mean", "std")})
        trunk = Trunk(localizer)
    tensors = weight_files.fitted(tensors, trunk.layers.state_dict(), path)
    trunk.layers.load_state_dict(tensors)
    return localizer, trunk.to(device)
