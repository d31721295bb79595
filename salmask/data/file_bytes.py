"""The bytes of a file, or the reason why they cannot be read."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_MAX_IN_MEMORY = 1 << 26  # bytes; larger files are read twice instead
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageError(Exception):
    """A file is not a usable image. The message is a short reason without the path."""


class UnreadableError(ImageError):
    """The bytes could not be read. Another attempt may succeed although the file is unchanged."""


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file for reading.

    Raises UnreadableError if that fails, and for anything else than a file, without opening it: a
    pipe would wait for its writer.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            return path.open("rb")
        unlisted = kind == stat.S_IFDIR and not os.access(path, os.R_OK)
    except OSError as error:
        raise UnreadableError(_reason(error, path)) from error
    if unlisted:
        raise UnreadableError("permission denied: a folder that cannot be listed")
    raise UnreadableError(f"{_KINDS.get(kind, 'a special file')}, not a file")


@contextmanager
def open_with_digest(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """The sha256 (hex) of a file, and a stream of the same bytes. Raises UnreadableError.

    Files of up to 64 MiB are read once, so that the digest is that of the bytes in the stream.
    """
    with open_file(path) as file:
        with as_image_errors():
            stream: BinaryIO = file
            if os.fstat(file.fileno()).st_size <= _MAX_IN_MEMORY:
                stream = BytesIO(file.read())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
            stream.seek(0)
        yield sha256, stream


def missing_folder(folder: Path) -> str:
    """A message if the images' folder is missing, empty or unreadable, as when its disk is not
    mounted; otherwise ""."""
    try:
        with os.scandir(folder) as entries:
            state = "" if next(entries, None) else "is empty"
    except FileNotFoundError:
        state = "does not exist"
    except OSError as error:
        state = f"cannot be listed ({_reason(error)})"
    return state and f"the images' folder {folder} {state}: mount it"


@contextmanager
def as_image_errors() -> Iterator[None]:
    """Turns every exception of pillow or of the system into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise UnreadableError("not enough memory to decode it") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise UnreadableError(_reason(error)) from error
        text = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "truncated" if "truncated" in text.lower() else "broken"
        raise ImageError(f"{kind}: {text}") from error


def _reason(error: OSError, path: Path | None = None) -> str:
    if error.errno == errno.ENOENT:
        return "a broken link" if path and path.is_symlink() else "it no longer exists"
    if error.errno == errno.ELOOP:
        return "a link to itself"
    return (error.strerror or str(error)).lower()
