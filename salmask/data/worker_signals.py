"""The processes that decode images, when their job is asked to stop."""

import signal
from types import FrameType


def ignore_stop_signals(_: int) -> None:
    """A DataLoader's `worker_init_fn`: what asks a job to stop is for the process that trains.

    It ends its workers itself; one that died first would make it fail before its last checkpoint.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _pass_over)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """The first SIGTERM; the next is from the process that we work for, as it leaves."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
