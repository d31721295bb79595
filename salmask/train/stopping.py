"""A signal that asks a training to stop, for it to hear between two steps."""

import signal
from types import FrameType


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
