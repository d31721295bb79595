"""Checks of a data set's folder."""

from collections.abc import Sequence
from pathlib import Path

from salmask.datasets.folders import is_folder
from salmask.datasets.listing import ListedFile
from salmask.errors import UserError


class LayoutError(UserError):
    """A folder does not have the layout of its data set. The message names the path that is
    missing or wrong; `dataset_reader` appends the expected layout."""


def select_folder(root: Path, *names: str) -> Path:
    """The subfolder of `root` that has one of these names, or `root` when there is none.

    Raises LayoutError when there are several.
    """
    folders = [root / name for name in names if is_folder(root / name)]
    if len(folders) > 1:
        both = " and ".join(folder.name for folder in folders)
        raise LayoutError(f"{root} contains {both}: use one of them as root")
    return folders[0] if folders else root


def require_folder(path: Path) -> Path:
    """`path`, which must be a folder. Raises LayoutError."""
    if not is_folder(path):
        raise LayoutError(f"the folder {path} does not exist")
    return path


def require_first_file(root: Path, files: Sequence[ListedFile]) -> None:
    """Raises LayoutError when a list is empty or the first file of it does not exist.

    Otherwise `prepare` would reject every image of the list, one by one.
    """
    if not files:
        raise LayoutError(f"{root}: the lists name no image")
    if not (root / files[0].path).exists():
        raise LayoutError(f"{root}: {files[0].path}, the first file of the list, does not exist")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises LayoutError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LayoutError(f"{path} cannot be read: {reason}") from None


def read_text(path: Path) -> str:
    """A file as UTF-8 text; other bytes are kept as surrogates. Raises LayoutError."""
    return read_bytes(path).decode("utf-8", "surrogateescape")
