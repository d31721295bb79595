"""The learned part of a mask on disk: masker.safetensors, in the folder of the run's encoder."""

from pathlib import Path

from safetensors.torch import load_file

from salmask.errors import UserError
from salmask.files import write_tensors
from salmask.masks.adios import Masker
from salmask.masks.strategies import LEARNED, options_of
from salmask.params.run import RunConfig
from salmask.shapes import Wiring

_MASKER = "masker.safetensors"


def save_masker(masker: Masker, folder: Path) -> None:
    """Writes the weights of a masker."""
    write_tensors(folder / _MASKER, masker.state_dict())


def load_masker(folder: Path, config: RunConfig) -> Masker | None:
    """The masker of the run in `folder`, on the CPU in eval mode; None if its mask does not learn.

    Raises UserError when the file is missing or does not fit the run's options.
    """
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
