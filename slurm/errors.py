"""The errors of jobs."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]


class JobFailedError(click.ClickException):
    """A job ended without a result. A click command ends with this message and exit code 1."""

    exit_code = 1


class OutOfMemoryError(JobFailedError):
    """A job ended because it took more memory than it had asked for."""


class DiskFullError(click.ClickException):
    """No space is left where work is saved. Exit code 1."""

    exit_code = 1


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turns what goes wrong because a disk is full into a DiskFullError that names the folder."""
    try:
        yield
    except DiskFullError:
        raise  # it has its name already
    except Exception as error:
        cause: BaseException | None = error
        while cause:  # torch buries it below errors of its own
            if isinstance(cause, OSError) and any(text in str(cause) for text in _FULL):
                raise DiskFullError(
                    f"no space is left on the disk of {folder}: make room, and `dvc repro` goes on "
                    "from the last checkpoint"
                ) from error
            cause = cause.__context__
        raise
