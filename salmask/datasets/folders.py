"""Folders as they come: links among them, and some that may not be entered."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from salmask.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
Ignored = Callable[[OSError], None]


def is_folder(path: Path) -> bool:
    """Whether there is a folder; not, where what lies above it may not be entered."""
    try:
        return path.is_dir()
    except OSError:
        return False


def walk(
    base: Path, unlisted: Ignored | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk: every folder, the names of the folders in it and of everything else, sorted.

    Links to folders are followed, each folder once, so that a loop of links ends. unlisted: is
    called with the error of a folder that cannot be listed.
    """
    seen: set[str] = set()
    for here, below, names in os.walk(base, followlinks=True, onerror=unlisted):
        real = os.path.realpath(here)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()  # which of two links to one folder comes first must not depend on the disk
        yield Path(here), below, sorted(names)


def images_below(base: Path) -> tuple[list[str], list[str]]:
    """Every file with an image's extension below a folder, and the folders right in it; sorted.

    Paths are relative to the folder. Links to folders are followed, each folder once, so that a
    loop of links ends. A folder below that cannot be listed stands among the files, to be refused
    with its reason; raises UserError when it is the folder itself.
    """

    def unlisted(error: OSError) -> None:
        if Path(error.filename) == base:
            raise UserError(f"data.root: {base} cannot be listed: {error.strerror}")
        images.append(os.path.relpath(error.filename, base))

    images: list[str] = []
    folders: list[str] = []
    for here, below, names in walk(base, unlisted):
        if here == base:
            folders, prefix = list(below), ""
        else:
            prefix = f"{os.path.relpath(here, base)}/"
        images += [prefix + name for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(images, key=lambda path: path.split("/")), folders


def class_of(path: str) -> str:
    """The first folder of a path, or "" for an image that lies in none."""
    return path.partition("/")[0] if "/" in path else ""
