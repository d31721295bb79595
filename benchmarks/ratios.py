"""Timing of alternatives against each other, in one process, and tables of the ratios."""

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Times = Mapping[str, list[float]]  # name -> seconds of each round


def interleaved(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Seconds of each function in each round: CPU seconds of all threads, or those of `clock`.

    Every round runs each function once, in rotating order, so that a temporary slowdown of the
    machine affects all of them. One round more comes first, as a warm-up.

    Args:
        work: the functions by name.
        rounds: number of timed rounds.
        before: what runs before each function, without being timed.
        clock: returns seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if before:
                before[name]()
            start = clock()
            work[name]()
            if number:
                times[name].append(clock() - start)
    return times


def release_memory() -> None:
    """Makes the next large tensors get new memory, as in a process that keeps no large blocks."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def ratio(times: Times, name: str, to: str) -> float:
    """The median over the rounds of one function's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def milliseconds(times: Times, name: str, images: int) -> float:
    """The median time of a function in ms, divided by the number of images."""
    return 1000 * statistics.median(times[name]) / images


def report(ratios: Mapping[str, tuple[float, float]], json_file: Path | None) -> None:
    """Prints each ratio with its goal, an upper limit, and writes them as JSON."""
    for name, (value, goal) in ratios.items():
        print(f"{name:32} {value:7.3f}   goal {goal:g}   {'met' if value <= goal else 'MISSED'}")
    if json_file:
        entries = {name: {"value": value, "goal": goal} for name, (value, goal) in ratios.items()}
        json_file.write_text(json.dumps(entries, indent=2) + "\n")
