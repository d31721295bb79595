"""A small file that stands for a folder of images, for DVC to watch in the folder's place.

DVC reads every byte below the folder that `data.root` names, and gives up on what it cannot read: a
link to nothing, a name that is not UTF-8, a pipe. A watch file names the folder and digests what
lies in it by name, size and time of change; written anew, it differs when the folder does.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from salmask.datasets.folders import is_folder, walk
from salmask.datasets.layout import LayoutError
from salmask.errors import UserError
from salmask.files import write_json

SCHEMA = "salmask.watch/1"


def write(folder: Path, file: Path) -> int:
    """Writes the watch file of a folder; returns how many files lie below it. Raises UserError for
    what is no folder."""
    if not is_folder(folder):
        raise UserError(f"{folder} is not a folder")
    sha, count = hashlib.sha256(), 0
    for path, state in _entries(folder):
        what = f"{state.st_size} {state.st_mtime_ns}" if state else "unknown"
        sha.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{what}\n".encode())
        count += 1
    about = {"schema": SCHEMA, "folder": str(folder.resolve()), "files": count}
    write_json(file, about | {"digest": sha.hexdigest()})
    return count


def folder_of(root: Path, where: str = "data.root") -> Path:
    """The folder that `root` is, or that the watch file `root` stands for. where: the key that
    names it. Raises UserError."""
    if is_folder(root):
        return root
    try:
        about = json.loads(root.read_text())
        folder = Path(about["folder"]) if about["schema"] == SCHEMA else None
    except OSError:
        raise LayoutError(f"{where}: {root} is neither a folder nor a watch file") from None
    except (ValueError, KeyError, TypeError):
        folder = None
    if folder is None:
        raise UserError(
            f"{where}: {root} is not a folder, nor a file that `salmask fingerprint-folder` has "
            "written"
        )
    if not is_folder(folder):
        raise UserError(f"{where}: {folder}, which {root} stands for, is not a folder")
    return folder


def unwatchable(folder: Path) -> Iterator[tuple[str, str]]:
    """What makes DVC fail, or wait for ever, on a folder: (path, why), the path as text."""
    for path, state in _entries(folder):
        shown = os.path.relpath(path, folder).encode(errors="backslashreplace").decode()
        if not _is_text(path):
            yield shown, "its name is not UTF-8"
        elif state is None:
            yield shown, "a link to nothing"
        elif not stat.S_ISREG(state.st_mode):
            yield shown, "a pipe, a socket or a device"
        elif not os.access(path, os.R_OK):
            yield shown, "permission denied"


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Every entry that is no folder, in order, with what it is, if that can be told."""
    for here, _, names in walk(folder):
        for name in names:
            try:
                yield here / name, (here / name).stat()
            except OSError:
                yield here / name, None


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
