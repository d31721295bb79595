"""The errors that a stage turns into a message instead of a traceback."""


class UserError(Exception):
    """A mistake in the input or the configuration, and how to fix it. Exit code 2."""


class InterruptedRunError(Exception):
    """A signal asked for the end; everything up to here is in a checkpoint. Exit code 143.

    number: of the signal; 0 if there was none.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class DataGoneError(InterruptedRunError):
    """The folder of images vanished (a disk unmounted) while a run was reading from it."""

    def __init__(self, message: str) -> None:
        # A DataLoader hands on its worker's whole traceback as the message; this is its last line.
        super().__init__(message.rpartition("DataGoneError: ")[2].strip())


class NonFiniteLossError(Exception):
    """The loss left the numbers. Exit code 1."""
