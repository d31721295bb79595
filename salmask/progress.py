"""Progress of long work: a bar on a terminal, plain lines with rate and time left in a log."""

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
    """Counts finished work and shows it, from the first process only.

    Args:
        title: the name of the work.
        total: the amount of work.
        unit: plural name of a unit of work.
        done: the amount that an earlier attempt finished.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.first = done
        self.start = self.shown_at = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=done, desc=title, unit=f" {unit}", dynamic_ncols=True)
            if sys.stderr.isatty() and _rank() == 0
            else None
        )

    def advance(self, count: int, note: str = "") -> None:
        """Adds finished work. note: a short text to show, such as the loss."""
        self.done += count
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.shown_at >= _LINE_EVERY_SECONDS:
            self._print_line(note)

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.done > self.first:
            self._print_line("")

    def _print_line(self, note: str) -> None:
        self.shown_at = time.monotonic()
        if _rank():
            return
        rate = (self.done - self.first) / max(self.shown_at - self.start, 1e-9)
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        tail = f"  {note}" if note else ""
        print(
            f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.0f} {self.unit}/s, "
            f"{left:.0f} s left{tail}",
            flush=True,
        )


@contextmanager
def progress(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Progress]:
    """A context with a Progress, which is closed at the end and after errors."""
    bar = Progress(title, total, unit, done)
    try:
        yield bar
    finally:
        bar.finish()
