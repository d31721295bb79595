"""How a stage ends when it fails: with a message and an exit code."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError

EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED = 1, 2, 143


def readable_errors(stage: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the main function of a stage: expected errors end it without a traceback.

    A mistake of the user exits with code 2, a loss that is not finite with 1, a stop signal with
    143. Any other exception is a bug and shows its traceback.
    """

    @functools.wraps(stage)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
        try:
            return stage(*args, **kwargs)
        except UserError as error:
            _exit(f"error: {error}", EXIT_USER_ERROR)
        except NonFiniteLossError as error:
            _exit(f"error: {error}", EXIT_FAILED)
        except InterruptedRunError as error:
            _exit(f"stopped: {error}; run the same command again to continue", EXIT_STOPPED)

    return wrapped


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
