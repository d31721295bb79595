"""Inspection of one file: the size and digest of an image, or the reason why it is not usable."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from salmask.data.decode import load_pixels, open_image
from salmask.data.file_bytes import ImageError, UnreadableError, open_with_digest

_LARGE = 1 << 25  # px
_one_large_image = threading.Lock()  # several at once, one per thread, would need too much memory


class Inspection(NamedTuple):
    """The result of an inspection.

    Args:
        state: size, modification time and inode of the file; "" if the result must not be cached.
        width: in px, upright.
        height: in px, upright.
        sha256: of the file, hex.
        reason: why the file is rejected; "" for an image.
    """

    state: str
    width: int = 0
    height: int = 0
    sha256: str = ""
    reason: str = ""


def inspect(path: Path, cached: Inspection | None = None) -> Inspection:
    """Reads and decodes a file, or returns `cached` if the file has not changed since.

    A file that could not be read (permissions, a failing disk) gets a result that is not cached:
    the cause may disappear without a change of the file's state.
    """
    state = _state(path)
    if cached is not None and cached.state == state:
        return cached
    try:
        with open_with_digest(path) as (sha256, stream):
            image = open_image(stream)
            large = image.width * image.height > _LARGE
            with _one_large_image if large else nullcontext():
                width, height = load_pixels(image, at_least=1)[1]
        inspection = Inspection(state, width, height, sha256)
    except UnreadableError as error:
        return Inspection("", reason=str(error))
    except ImageError as error:
        inspection = Inspection(state, reason=str(error))
    if _state(path) != state:
        return Inspection("", reason="it changed while it was read")
    return inspection


def _state(path: Path) -> str:
    """Size, modification time and inode, which DVC compares as well; "" for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
