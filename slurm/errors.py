"""The errors of jobs."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

_DISK_FULL_TEXTS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]


class JobFailedError(click.ClickException):
    """A job ended without a result. A click command prints the message and exits with code 1."""


class OutOfMemoryError(JobFailedError):
    """A job ended because it used more memory than it had requested."""


class DiskFullError(click.ClickException):
    """No space is left on the disk of the runs' folder. Exit code 1."""


@contextmanager
def named_disk_full(folder: Path) -> Iterator[None]:
    """Turns every exception that a full disk causes into a DiskFullError that names the folder."""
    try:
        yield
    except DiskFullError:
        raise  # it names its folder already
    except Exception as error:
        cause: BaseException | None = error
        while cause:  # torch raises errors of its own on top of the OSError
            if isinstance(cause, OSError) and any(text in str(cause) for text in _DISK_FULL_TEXTS):
                raise DiskFullError(
                    f"no space is left on the disk of {folder}: free some space, then `dvc repro` "
                    "continues from the last checkpoint"
                ) from error
            cause = cause.__context__
        raise
