"""A trained or imported encoder of this project, so that saliency uses no labels."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from salmask.encoders import weight_files
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import check
from salmask.saliency.localizers import FittedLocalizer
from salmask.saliency.localizers.assembly import assemble
from salmask.saliency.trunks import Triple
from salmask.stored_files import read_json


@dataclass(frozen=True)
class _InputFilter:
    name: str
    kernel: int
    sigma: float


@dataclass(frozen=True)
class _Input:
    mean: Triple
    std: Triple
    filter: _InputFilter | None


@dataclass(frozen=True)
class _Description:
    """The parts of encoder.json that matter here."""

    encoder: EncoderConfig
    input: _Input


def encoder(*, path: Path, sha256: str | None = None) -> FittedLocalizer:
    """An encoder, with the normalisation and the input filter of its encoder.json.

    Args:
        path: the folder with encoder.json and encoder.safetensors.
        sha256: of encoder.safetensors, 64 hex digits.

    Raises:
        UserError: when a file is missing or malformed, and as `weight_files.fitted` does.
    """
    file = path / "encoder.json"
    advice = "localizer.path must name a folder with encoder.json and encoder.safetensors"
    if not file.is_file():
        raise UserError(f"localizer: {path} holds no encoder: {advice}")
    description = check(read_json(file), _Description, str(file))
    arch = {"encoder": asdict(description.encoder), "filter": asdict(description.input)["filter"]}
    locate = partial(weight_files.local, path / "encoder.safetensors", sha256, advice)
    mean, std = description.input.mean, description.input.std
    return assemble("encoder", "salmask", arch, mean, std, locate)


LOCALIZER = encoder
