"""The speed of a training, and how much of the time it waits for data. Decides no result."""

import csv
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
COLUMNS = ("epoch", "seconds", "images_per_second", "data_wait")


class Speed:
    """Measures each epoch of a training, or the part of it since the training resumed.

    Args:
        file: a CSV file to which `end_epoch` appends a row with COLUMNS. `data_wait` is the share
            of the time that the training waited for batches.
        images: images per step, of all processes; 0 if unknown.
    """

    def __init__(self, file: Path, images: int) -> None:
        self.file, self.images = file, images
        self._restart()

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; measures how long each one takes to arrive."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - start
            self.steps += 1
            yield batch

    def text(self) -> str:
        """A text for progress lines: `420 images/s, data 3%`."""
        _, _, rate, share = self._row(0)
        parts = [f"{rate:.0f} images/s"] if self.images else []
        return ", ".join([*parts, f"data {100 * share:.0f}%"])

    def end_epoch(self, epoch: int) -> None:
        """Appends the row of an epoch to the file, and starts to measure the next one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.file.exists()
        with self.file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow([epoch, *(f"{value:.4g}" for value in self._row(epoch)[1:])])
        self._restart()

    def _row(self, epoch: int) -> tuple[int, float, float, float]:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        return epoch, seconds, self.images * self.steps / seconds, self.waited / seconds

    def _restart(self) -> None:
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0
