"""Folders as they come: links among them, and some that may not be entered."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

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
