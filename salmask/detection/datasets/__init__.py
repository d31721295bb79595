"""Data sets with annotated images, found by the `name` in
`detect.<name>.data` of params.yaml.

Each module of this package that defines `DATASET` is one data set: a function (folder, seed, *,
root, options) -> (root, training images, test images). To add a data set, add a module. Images stay
in `root`; only the demo draws its own images into `folder`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from salmask.by_name import ByName
from salmask.datasets.folders import require_inside
from salmask.detection.objects import Annotations
from salmask.params.ranges import Name, Several
from salmask.params.values import Choice, bind, pick

Names = Several[Name]
Splits = tuple[Path, Annotations, Annotations]  # root of the images, to train on, to test on

DATASETS: ByName[Callable[..., Splits]] = ByName(__name__, "DATASET")


def configured_reader(choice: Choice, where: str) -> partial[Splits]:
    """The function (folder, seed) -> Splits that a section `detect.<name>.data` selects.

    Args:
        choice: name and options of the data set.
        where: the place of the section, for messages.

    Raises:
        UserError: there is no such data set, or an option is missing or has a wrong value.
    """
    dataset = pick(DATASETS, choice.name, f"{where}.name")
    return partial(dataset, **bind(dataset, choice.options, where))


def path_inside(root: Path, name: str) -> Path:
    """The path `name` below `root`. DVC watches `root` only, so other paths raise UserError."""
    return root / require_inside(root, name, "a path of the annotations")
