"""The error of jobs."""

import click


class JobFailedError(click.ClickException):
    """A job ended without a result. A click command ends with this message and exit code 1."""

    exit_code = 1
