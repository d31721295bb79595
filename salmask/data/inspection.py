"""What one file is: the size and digest of an image, or why it cannot be used."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from salmask.data.decode import opened, pixels
from salmask.data.file_bytes import ImageError, UnreadableError, content

_HUGE = 1 << 25  # px
_one_huge = threading.Lock()  # many at once, one a thread, would fill the memory


class Seen(NamedTuple):
    """What was found. width, height: px, upright; sha256: hex; reason: why the file is refused, ""
    for an image. state: tells whether the file has changed since; "" is not to be remembered."""

    state: str
    width: int = 0
    height: int = 0
    sha256: str = ""
    reason: str = ""


def inspect(path: Path, before: Seen | None = None) -> Seen:
    """Reads and decodes the whole file, unless `before` saw it in the state that it is in.

    What could not be read at all (a permission, a disk's fault) is not to be remembered: it may
    pass and leave no trace in the file's state.
    """
    state = _state(path)
    if before is not None and before.state == state:
        return before
    try:
        with content(path) as (sha256, stream):
            image = opened(stream)
            huge = image.width * image.height > _HUGE
            with _one_huge if huge else nullcontext():
                width, height = pixels(image, at_least=1)[1]
        found = Seen(state, width, height, sha256)
    except UnreadableError as error:
        return Seen("", reason=str(error))
    except ImageError as error:
        found = Seen(state, reason=str(error))
    return found if _state(path) == state else Seen("", reason="it changed while it was read")


def _state(path: Path) -> str:
    """Size, time of change and inode, as DVC too compares them; "" for what is not there."""
    try:
        now = path.stat()
    except OSError:
        return ""
    return f"{now.st_size} {now.st_mtime_ns} {now.st_ino}"
