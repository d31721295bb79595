"""A learned mask on disk, beside the encoder that it was trained against."""

from pathlib import Path

from salmask import frameworks
from salmask.errors import UserError
from salmask.files import write_tensors
from salmask.masks import MASKS, LearnedMask
from salmask.masks.wiring import wire_mask
from salmask.params.run import RunConfig
from salmask.stored_files import read_tensors

_MASKER = "masker.safetensors"


def save_masker(masker: LearnedMask, folder: Path) -> None:
    """Writes the weights of a learned mask."""
    write_tensors(folder / _MASKER, masker.state_dict())


def load_masker(folder: Path, config: RunConfig) -> LearnedMask | None:
    """The learned mask of a run, on the CPU in eval mode; None for a mask that does not learn.

    Raises UserError when the file is missing, has changed since it was made, or does not fit the
    run.
    """
    if not MASKS[config.mask.name].learns:
        return None
    wiring = frameworks.wiring_of(config.framework, config.train.batch)
    masker = wire_mask(config.mask, wiring, config.view).masker
    assert masker is not None
    try:
        masker.load_state_dict(read_tensors(folder / _MASKER))
    except FileNotFoundError:
        raise UserError(f"{folder / _MASKER} is missing: run `dvc repro pretrain`") from None
    except RuntimeError as error:
        raise UserError(
            f"{folder / _MASKER} does not fit the section `mask` of run {config.name}: {error}"
        ) from None
    return masker.eval().requires_grad_(False)
