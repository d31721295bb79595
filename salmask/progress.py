"""Progress of long work: a bar on a terminal, plain lines in a job's log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_LINE_EVERY_SECONDS = 15.0


def _rank() -> int:
    """The rank of this process. Without torch, which takes seconds to import, there is only one."""
    if "torch" not in sys.modules:
        return 0
    from salmask.distributed import rank

    return rank()


class Progress:
    """Counts work done. `advance` may carry a short note, such as the loss."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.first = done
        self.start = self.said = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=done, desc=what, unit=f" {unit}", dynamic_ncols=True)
            if sys.stderr.isatty() and _rank() == 0
            else None
        )

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.said >= _LINE_EVERY_SECONDS:
            self._say(note)

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.done > self.first:
            self._say("")

    def _say(self, note: str) -> None:
        self.said = time.monotonic()
        if _rank():  # one process speaks for all
            return
        rate = (self.done - self.first) / max(self.said - self.start, 1e-9)
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        tail = f"  {note}" if note else ""
        print(
            f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.0f} {self.unit}/s, "
            f"{left:.0f} s left{tail}",
            flush=True,
        )


@contextmanager
def progress(what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Progress]:
    """A Progress that is closed whatever happens. done: what an earlier try had finished."""
    shown = Progress(what, total, unit, done)
    try:
        yield shown
    finally:
        shown.finish()
