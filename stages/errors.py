"""How a stage ends when it fails: with a message and an exit code."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError, WorkerDiedError
from salmask.params.mistakes import full_message
from salmask.stop_signals import STOP_SIGNALS, raise_interrupted
from salmask.temporary_folder import use_short_temporary_folder

EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_STOPPED = 1, 2, 130, 143
_ADVICE = "run the same command again to continue"


class Stage(click.Command):
    """The command of a stage. Expected errors end it without a traceback.

    A mistake of the user exits with code 2, a loss that is not finite and a worker process that was
    killed with 1, a stop signal with 143, Ctrl-C with 130. Any other exception is a bug and shows
    its traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the stage."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
        try:
            use_short_temporary_folder()
            with _stop_signals_as_errors():
                return super().invoke(ctx)
        except UserError as error:
            _exit(f"error: {full_message(error)}", EXIT_USER_ERROR)
        except (NonFiniteLossError, WorkerDiedError) as error:
            _exit(f"error: {error}", EXIT_FAILED)
        except InterruptedRunError as error:
            _exit(f"stopped: {error}; {_ADVICE}", EXIT_STOPPED)
        except KeyboardInterrupt:
            kept = "finished work and the last checkpoints are kept"
            _exit(f"\nstopped by Ctrl-C: {kept}; {_ADVICE}", EXIT_INTERRUPTED)


@contextmanager
def _stop_signals_as_errors() -> Iterator[None]:
    """Makes stop signals raise InterruptedRunError, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():  # has no signal handlers
        yield
        return
    before = {number: signal.signal(number, raise_interrupted) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
