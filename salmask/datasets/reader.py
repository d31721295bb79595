"""From the section `data` (or an entry of `transfer`) of params.yaml to the files of a data set."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from pydantic.dataclasses import dataclass

from salmask.datasets import DATASETS, Listing
from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.folders import LayoutError, require_inside
from salmask.errors import UserError
from salmask.params.ranges import PositiveInt, Share
from salmask.params.values import STRICT, Choice, bind, pick


@dataclass(frozen=True, config=STRICT)
class FilePolicy:
    """Options that every data set accepts.

    Args:
        max_rejected: largest accepted share of unusable files.
        min_side: in px; images with a smaller side are rejected.
        pack: whether to copy the files into a few large ones, from which the stages then read.
    """

    max_rejected: Share = 0.05
    min_side: PositiveInt = 8
    pack: bool = False


def dataset_reader(choice: Choice, where: str) -> tuple[FilePolicy, Callable[[Path, int], Listing]]:
    """Checks the options of a data set; returns its policy and a function (out, seed) -> Listing.

    Args:
        choice: name and options of the data set.
        where: file and key of the section, for error messages.

    Raises UserError for an unknown name or option; so does the returned function when `root` does
    not have the expected layout.
    """
    dataset = pick(DATASETS, choice.name, f"{where}.name")
    options = bind(dataset.read, choice.options, where, FilePolicy)
    policy = FilePolicy(**{field.name: options.pop(field.name) for field in fields(FilePolicy)})

    def read(out: Path, seed: int) -> Listing:
        root = options["root"]
        try:
            if isinstance(root, Path):
                root = folder_of(root, f"{where}.root")
            listing = dataset.read(out, seed, **options | {"root": root})
        except LayoutError as error:
            instructions = dataset.instructions(choice.name, root)
            raise UserError(f"{error}. {instructions}" if instructions else str(error)) from None
        for file in listing.files:
            require_inside(listing.root, file.path, where)
        return listing

    return policy, read


def check_root(choice: Choice, where: str) -> None:
    """Raises UserError if the folder of a data set, which `root` names, is not there."""
    dataset = pick(DATASETS, choice.name, f"{where}.name")
    root = bind(dataset.read, choice.options, where, FilePolicy)["root"]
    if isinstance(root, Path):  # not the demo's, which is not read
        folder_of(root, f"{where}.root")
