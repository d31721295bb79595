"""A small file that represents a folder of images, so that DVC tracks this file instead.

DVC reads every byte below the folder that `data.root` names, and fails on entries that it cannot
read: broken links, names that are not UTF-8, pipes. A fingerprint file contains the folder's path
and a digest of the names, sizes and modification times below it. After a change of the folder,
writing the file again gives another digest.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from salmask.datasets.folders import LayoutError, is_folder, walk
from salmask.errors import UserError
from salmask.files import write_json

SCHEMA = "salmask.watch/1"
_SURROGATES = re.compile("[\ud800-\udfff]")  # bytes of a name that are not UTF-8


def write_fingerprint(folder: Path, file: Path) -> int:
    """Writes the fingerprint of a folder; returns the number of files below it.

    Raises UserError when `folder` is not a folder.
    """
    if not is_folder(folder):
        raise UserError(f"{folder} is not a folder")
    sha, count = hashlib.sha256(), 0
    for path, status in _entries(folder):
        state = f"{status.st_size} {status.st_mtime_ns}" if status else "unknown"
        sha.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{state}\n".encode())
        count += 1
    header = {"schema": SCHEMA, "folder": str(folder.resolve()), "files": count}
    write_json(file, header | {"digest": sha.hexdigest()})
    return count


def folder_of(root: Path, where: str = "data.root") -> Path:
    """`root` if it is a folder, or the folder that the fingerprint file `root` represents.

    Args:
        root: a folder or a fingerprint file.
        where: key of `root` in params.yaml, for error messages.

    Raises UserError when there is no folder.
    """
    if is_folder(root):
        return root
    try:
        content = json.loads(root.read_text(encoding="utf-8"))
        folder = Path(content["folder"]) if content["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        folder = None
    if folder is None:
        raise LayoutError(
            f"{where}: {root} is neither a folder nor a file of `salmask fingerprint-folder`"
        )
    if not is_folder(folder):
        raise UserError(f"{where}: {folder}, which {root} represents, is not a folder")
    return folder


def untrackable(folder: Path) -> Iterator[tuple[str, str]]:
    """Entries on which DVC would fail or wait for ever: (printable path, reason)."""
    for path, status in _entries(folder):
        shown = os.path.relpath(path, folder).encode(errors="backslashreplace").decode()
        if _SURROGATES.search(str(path)):
            yield shown, "its name is not UTF-8"
        elif status is None:
            yield shown, "a broken link"
        elif not stat.S_ISREG(status.st_mode):
            yield shown, "a pipe, a socket or a device"
        elif not os.access(path, os.R_OK):
            yield shown, "permission denied"


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Every entry that is not a folder, in order, with its status; None if that is unavailable."""
    for parent, _, names in walk(folder):
        for name in names:
            try:
                yield parent / name, (parent / name).stat()
            except OSError:
                yield parent / name, None
