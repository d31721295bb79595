"""What ends a training early: a signal, heard between two steps, or images that vanish."""

import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from salmask.errors import DataGoneError

T = TypeVar("T")


class StopSignal:
    """Turns SIGTERM and SIGUSR2 into a number that the loop reads between two steps: the signal's,
    or 0. The higher one wins, which is SIGTERM on Linux."""

    asked = 0

    def __enter__(self) -> "StopSignal":
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGUSR2)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = max(self.asked, number)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def saving(batches: Iterator[T], save: Callable[[], None]) -> Iterator[T]:
    """The batches; `save` is called when they end because the images are gone."""
    try:
        yield from batches
    except DataGoneError:
        save()
        raise
