"""Data sets with annotated images, found by the `name` of a section under `detect` in params.yaml.

Each module of this package that defines `DATASET` is one data set: a function (folder, seed, *,
root, options) -> (root, training images, test images). To add a data set, add a module. Images stay
in `root`; only the demo draws its own images into `folder`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from salmask.by_name import ByName
from salmask.detection.objects import Annotations
from salmask.errors import UserError
from salmask.params.values import Choice, bind, option_names, pick
from salmask.params.yaml_file import Params

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Splits = tuple[Path, Annotations, Annotations]  # root of the images, to train on, to test on

DATASETS: ByName[Callable[..., Splits]] = ByName(__name__, "DATASET")


# The options of a detector's training, which are in the same section. This list replaces an import
# of `protocol.run`, so that a change of the training does not rerun the reading.
TRAINING_OPTIONS = (
    "recipe", "masks", "freeze_encoder", "norm", "precise_norm", "iterations", "milestones",
    "batch", "lr", "scale_lr", "warmup", "warmup_factor", "short_sides", "test_short_side",
    "long_side", "flip", "difficult", "anchors", "regions", "pictures", "precision",
)  # fmt: skip


def configured_reader(params: Params, key: str) -> Callable[[Path, int], Splits]:
    """The function (folder, seed) -> Splits that a section under `detect` selects.

    Only the options of the data set are read, and recorded in `params.reads`.

    Args:
        params: all parameters.
        key: of the section, as `detect.voc`.

    Raises:
        UserError: there is no such data set, an option is missing or has a wrong value, or a key is
            no option of the data set or of the training.
    """
    where = f"{params.source}: {key}"
    section = Params(params.values, params.source).choice(key)  # a copy, which records the reads
    dataset = pick(DATASETS, section, where)
    names = option_names(dataset)
    for name, value in section.options.items():
        if name not in (*names, *TRAINING_OPTIONS):
            allowed = ", ".join(dict.fromkeys([*names, *TRAINING_OPTIONS]))
            raise UserError(f"{where}: {name}: no such key, got {value!r} (allowed: {allowed})")
    options = {name: value for name, value in section.options.items() if name in names}
    for name in ("name", *options):
        params.raw(f"{key}.{name}")
    return partial(dataset, **bind(dataset, Choice(section.name, options), where))


def path_inside(root: Path, name: str) -> Path:
    """The path `name` below `root`. DVC watches `root` only, so other paths raise UserError."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{name} must be a path inside root ({root}), which DVC watches")
    return root / name
