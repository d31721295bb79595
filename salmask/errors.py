"""Errors that a stage shows as a message, without a traceback."""


class UserError(Exception):
    """The input or the configuration is wrong. The message says how to fix it. Exit code 2."""


class InterruptedRunError(Exception):
    """A run was stopped before its end, with a checkpoint saved. Exit code 143.

    Args:
        message: what happened.
        number: the number of the signal; 0 without a signal.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class StoppedWaitingError(InterruptedRunError):
    """A stop signal arrived while a training waited for images."""


class WorkerDiedError(Exception):
    """A process that decodes images was killed. Exit code 1."""


class DataGoneError(InterruptedRunError):
    """The folder of images vanished during a run, for instance because a disk was unmounted."""

    def __init__(self, message: str) -> None:
        # A DataLoader passes the whole traceback of its worker as the message; keep its last line.
        super().__init__(message.rpartition("DataGoneError: ")[2].strip())


class NonFiniteLossError(Exception):
    """A training diverged: its loss or its weights are not finite. Exit code 1."""
