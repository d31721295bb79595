"""Walking through folders that contain symbolic links and unreadable folders."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from salmask.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def is_folder(path: Path) -> bool:
    """Whether a folder exists at `path`; False when a parent folder may not be entered."""
    try:
        return path.is_dir()
    except OSError:
        return False


def walk(
    base: Path, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like os.walk: every folder, and the sorted names of its subfolders and of its other entries.

    Symbolic links to folders are followed, but each folder is visited once, so that cycles end.

    Args:
        base: folder to start from.
        on_error: is called with the error of a folder that cannot be listed.
    """
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(base, followlinks=True, onerror=on_error):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders.sort()  # the order of two links to one folder must not depend on the disk
        yield Path(folder), subfolders, sorted(names)


def images_below(base: Path) -> tuple[list[str], list[str]]:
    """All files below `base` with an image's extension, and the direct subfolders, both sorted.

    Paths are relative to `base`. A subfolder that cannot be listed appears among the files, so that
    `prepare` rejects it with the reason. Raises UserError when `base` itself cannot be listed.
    """

    def on_error(error: OSError) -> None:
        if Path(error.filename) == base:
            raise UserError(f"data.root: {base} cannot be listed: {error.strerror}")
        images.append(os.path.relpath(error.filename, base))

    images: list[str] = []
    direct: list[str] = []
    for folder, subfolders, names in walk(base, on_error):
        if folder == base:
            direct, prefix = list(subfolders), ""
        else:
            prefix = f"{os.path.relpath(folder, base)}/"
        images += [prefix + name for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(images, key=lambda path: path.split("/")), direct


def class_of(path: str) -> str:
    """The first folder of a path; "" when it has none."""
    return path.partition("/")[0] if "/" in path else ""
