"""Signals that stop a run: SIGTERM, and SIGUSR2, which Slurm sends before a time limit."""

import signal
import time
from types import FrameType

from salmask.errors import InterruptedRunError, StoppedWaitingError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_GRACE_SECONDS = 5.0  # how long a training may go on waiting for data after a signal
_held: list["StopSignal"] = []  # the contexts that last, the newest one last


class StopSignal:
    """Holds SIGTERM and SIGUSR2 back while its context lasts.

    `number` is the number of the signal that arrived, or 0; of both signals, the higher number,
    which is SIGTERM on Linux. A signal that nobody handled before the context ends is raised again.
    """

    number = 0
    arrived = 0.0  # a time of `time.monotonic`

    def __enter__(self) -> "StopSignal":
        self.handlers = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        _held.append(self)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.arrived = self.arrived or time.monotonic()
        self.number = max(self.number, number)

    def __exit__(self, error: object, *_: object) -> None:
        _held.remove(self)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.number and error is None:
            signal.raise_signal(self.number)


def check_while_waiting() -> None:
    """Raises StoppedWaitingError if a `StopSignal` arrived some seconds ago.

    Whoever waits for data calls this again and again, because a training cannot react to a signal
    before it gets its next batch.
    """
    for stop in _held:
        if stop.number and time.monotonic() - stop.arrived > _GRACE_SECONDS:
            raise StoppedWaitingError(
                "stopped by a signal while waiting for images; a checkpoint is saved", stop.number
            )


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """The signal handler while no training loop has installed its own."""
    raise InterruptedRunError("received a stop signal; checkpoints are kept", number)
