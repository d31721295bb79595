"""The errors of jobs."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from salmask.errors import UserError

_NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL_TEXTS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]


class JobFailedError(click.ClickException):
    """A job ended without a result. A click command prints the message and exits with code 1."""


class OutOfMemoryError(JobFailedError):
    """A job ended because it used more memory than it had requested."""


class DiskFullError(click.ClickException):
    """No space is left on the disk of the runs' folder. Exit code 1."""


@contextmanager
def named_folder_errors(folder: Path) -> Iterator[None]:
    """Turns exceptions that a full disk or missing permissions cause into errors that say so.

    Args:
        folder: the folder of a run, or of published files; DiskFullError names it.

    Raises:
        DiskFullError: no space is left.
        UserError: a file cannot be written or read here.
    """
    try:
        yield
    except (DiskFullError, UserError):
        raise  # they name their folder already
    except Exception as error:
        cause: BaseException | None = error
        while cause:  # torch raises errors of its own on top of the OSError
            if isinstance(cause, OSError):
                if any(text in str(cause) for text in _DISK_FULL_TEXTS):
                    raise DiskFullError(
                        f"no space is left on the disk of {folder}: free some space, then "
                        "`dvc repro` continues from the last checkpoint"
                    ) from error
                if cause.errno in _NOT_PERMITTED and cause.filename:
                    raise UserError(
                        f"{os.fsdecode(cause.filename)}: {cause.strerror}: change its permissions, "
                        "or set SALMASK_RUNS (and SALMASK_FEATURES, if you use it) to folders "
                        "where you have write permission"
                    ) from None
            cause = cause.__context__
        raise
