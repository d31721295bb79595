"""A file's bytes, or why they cannot be had or used, in words for people."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_IN_MEMORY = 1 << 26  # bytes; what is larger is read twice instead of held
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageError(Exception):
    """Why a file is no usable image, in a few words without its path."""


class UnreadableError(ImageError):
    """Its bytes could not be had; another try may do better without any change to the file."""


def regular(path: Path) -> BinaryIO:
    """A file, open for reading. Raises UnreadableError where it cannot be, and for what is no
    file, without opening that: a pipe would wait for its writer."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            return path.open("rb")
        unlisted = kind == stat.S_IFDIR and not os.access(path, os.R_OK)
    except OSError as error:
        raise UnreadableError(_refusal(error, path)) from error
    if unlisted:
        raise UnreadableError("permission denied: a folder that cannot be listed")
    raise UnreadableError(f"{_KINDS.get(kind, 'a special file')}, not a file")


@contextmanager
def content(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """A file's sha256 (hex) and the very bytes it speaks of, as a stream. Raises UnreadableError.

    Up to 64 MiB are read once and held; of larger files the digest comes first.
    """
    with regular(path) as file:
        with explained():
            stream: BinaryIO = file
            if os.fstat(file.fileno()).st_size <= _IN_MEMORY:
                stream = BytesIO(file.read())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
            stream.seek(0)
        yield sha256, stream


def gone(folder: Path) -> str:
    """What to say of a folder that is missing, empty or not to be listed, as an unmounted disk
    leaves it; "" when it is there."""
    try:
        with os.scandir(folder) as entries:
            state = "" if next(entries, None) else "empty"
    except FileNotFoundError:
        state = "not there"
    except OSError as error:
        state = f"not to be listed ({_refusal(error)})"
    return state and f"the images' folder {folder} is {state}: mount it"


@contextmanager
def explained() -> Iterator[None]:
    """Whatever a broken file provokes, from pillow or below, as an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise UnreadableError("not enough memory to decode it") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise UnreadableError(_refusal(error)) from error
        text = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "truncated" if "truncated" in text.lower() else "broken"
        raise ImageError(f"{kind}: {text}") from error


def _refusal(error: OSError, path: Path | None = None) -> str:
    if error.errno == errno.ENOENT:
        return "a link to nothing" if path and path.is_symlink() else "not there any more"
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    return (error.strerror or str(error)).lower()
