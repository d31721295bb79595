"""How a stage ends when it fails: with a message and an exit code."""

import logging
import sys
from typing import Any

import click

from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError
from salmask.temporary_folder import use_short_temporary_folder

EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_STOPPED = 1, 2, 130, 143
_ADVICE = "run the same command again to continue"


class Stage(click.Command):
    """The command of a stage. Expected errors end it without a traceback.

    A mistake of the user exits with code 2, a loss that is not finite with 1, a stop signal with
    143, Ctrl-C with 130. Any other exception is a bug and shows its traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the stage."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
        try:
            use_short_temporary_folder()
            return super().invoke(ctx)
        except UserError as error:
            _exit(f"error: {error}", EXIT_USER_ERROR)
        except NonFiniteLossError as error:
            _exit(f"error: {error}", EXIT_FAILED)
        except InterruptedRunError as error:
            _exit(f"stopped: {error}; {_ADVICE}", EXIT_STOPPED)
        except KeyboardInterrupt:
            kept = "finished work and the last checkpoints are kept"
            _exit(f"\nstopped by Ctrl-C: {kept}; {_ADVICE}", EXIT_INTERRUPTED)


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
