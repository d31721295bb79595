"""Signals in the worker processes of a DataLoader."""

import signal
from types import FrameType


def ignore_stop_signals(_: int) -> None:
    """A `worker_init_fn`: only the process that trains reacts to the signals that stop a job.

    It ends its workers itself. If a worker ended first, the training would fail before it writes
    its last checkpoint.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    """Ignores the first SIGTERM; the next one comes from the training process as it ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
