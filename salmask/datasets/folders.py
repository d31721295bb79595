"""The folders of data sets: walking through them, and checks of their layout.

Folders may contain symbolic links and subfolders that cannot be read.
"""

import codecs
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from salmask.datasets import ListedFile
from salmask.errors import UserError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".avif", ".jp2", ".j2k", ".jpx"),
)
# Folders of operating systems and network storage, in lower case. They hold thumbnails and deleted
# files. Names that start with a dot are ignored as well.
_SYSTEM_FOLDERS = (
    *("@eadir", "#recycle", "@recycle", "@tmp", "$recycle.bin", "recycler", "__macosx"),
    *("system volume information", "lost+found"),
)
_MAX_KINDS = 8  # in one note
_DRIVE = re.compile("[A-Za-z]:")


class LayoutError(UserError):
    """A folder does not have the layout of its data set. The message names the path that is
    missing or wrong; `dataset_reader` appends the expected layout."""


def is_folder(path: Path) -> bool:
    """Whether a folder exists at `path`; False when a parent folder may not be entered."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a file exists at `path`; False for a path that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
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


def is_ignored(name: str) -> bool:
    """Whether a folder or file of this name belongs to the system and not to the data set."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def images_below(base: Path, unread: list[str] | None = None) -> tuple[list[str], list[str]]:
    """All files below `base` with an image's extension, and the direct subfolders, both sorted.

    Paths are relative to `base`. A subfolder that cannot be listed appears among the files, so that
    `prepare` rejects it with the reason. Hidden files and the folders of operating systems are left
    out.

    Args:
        base: folder to search.
        unread: receives the paths of all other files, and of the folders that were left out.

    Raises:
        UserError: `base` itself cannot be listed.
    """

    def on_error(error: OSError) -> None:
        if Path(error.filename) == base:
            raise UserError(f"data.root: {base} cannot be listed: {error.strerror}")
        images.append(os.path.relpath(error.filename, base))

    images: list[str] = []
    direct: list[str] = []
    others = [] if unread is None else unread
    for folder, subfolders, names in walk(base, on_error):
        prefix = "" if folder == base else f"{os.path.relpath(folder, base)}/"
        others += [f"{prefix}{name}/" for name in subfolders if is_ignored(name)]
        subfolders[:] = [name for name in subfolders if not is_ignored(name)]
        if folder == base:
            direct = list(subfolders)
        for name in names:
            is_image = name.lower().endswith(EXTENSIONS) and not is_ignored(name)
            (images if is_image else others).append(prefix + name)
    return sorted(images, key=lambda path: path.split("/")), direct


def note_on_unread(unread: Sequence[str]) -> list[str]:
    """A sentence that counts the files and folders which `images_below` left out, by kind."""
    kinds: Counter[str] = Counter()
    for path in unread:
        name = path.rstrip("/").rpartition("/")[2]
        if path.endswith("/"):
            kinds[f"folder {name}"] += 1
        elif is_ignored(name):
            kinds["hidden"] += 1
        else:
            kinds[os.path.splitext(name)[1].lower() or "without extension"] += 1  # noqa: PTH122
    if not kinds:
        return []
    parts = [f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda k: (-k[1], k))]
    shown = ", ".join(parts[:_MAX_KINDS])
    more = f" and {len(parts) - _MAX_KINDS} more kinds" if len(parts) > _MAX_KINDS else ""
    text = f"not read, because of their names: {shown}{more}"
    return ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)]


def class_of(path: str) -> str:
    """The first folder of a path; "" when it has none."""
    return path.partition("/")[0] if "/" in path else ""


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
    """The text of a file in UTF-8 or, after its byte order mark, UTF-16; bytes that are not UTF-8
    are kept as surrogates. Raises LayoutError."""
    content = read_bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def leads_out(path: str) -> bool:
    """Whether a path with either separator is absolute or has a part `..`."""
    parts = path.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or bool(_DRIVE.fullmatch(parts[0]))


def require_inside(root: Path, path: str, where: str) -> str:
    """`path`, relative to `root`. Raises UserError for a path that leads out of `root`."""
    if leads_out(path):
        raise UserError(f"{where}: {path} leads out of {root}, which DVC watches")
    return path
