"""Worker processes that decode images: how they are started, watched and ended.

Workers hand batches over in shared memory. Every wait for them has a limit, a stop signal ends it,
and no worker outlives this process. That decides no result.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any, NoReturn

from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from salmask.data.free_memory import SHARED_MEMORY, free_shared_memory
from salmask.errors import UserError, WorkerDiedError
from salmask.stop_signals import STOP_SIGNALS, check_while_waiting

log = logging.getLogger(__name__)

_SIGNALS = {*STOP_SIGNALS, signal.SIGINT}  # to which workers do not react
_PREFETCHED = 4  # batches that each worker prepares in advance, if they fit
_IN_USE = 2  # batches in shared memory that this process has received: the present and the next one
_POLL_SECONDS = 1.0  # between looks at signals and workers
_NOTICE_SECONDS = 120.0  # of waiting for one batch, until a warning says so
_LIMIT_SECONDS = 3600.0  # of waiting for one batch, until it is an error
_JOIN_SECONDS = 5.0  # for a process that was killed
_SHARED_MEMORY_FULL = 77  # exit code of a worker
_FULL_TEXTS = ("No space left on device", "Bus error")


def load_batches(dataset: Any, *, workers: int, batch_bytes: int, **options: Any) -> Iterator[Any]:
    """The batches of a `DataLoader`.

    Args:
        dataset: the data set.
        workers: the number of worker processes at most; 0 makes the batches in this process.
        batch_bytes: the size of a batch in shared memory.
        **options: of `DataLoader`.

    Raises:
        UserError: when no batch fits into the free shared memory.
        WorkerDiedError: when a worker died, or no batch arrived for an hour.
        StoppedWaitingError: see `check_while_waiting`.
    """
    count, prefetched = fit_into_shared_memory(batch_bytes, workers)
    if not count:
        yield from DataLoader(dataset, **options)
        return
    if count < workers:
        log.warning(
            "only %s of %s worker processes are used: the free shared memory holds no more batches "
            "of %s. A larger %s makes this faster (docker run --shm-size)",
            *(count, workers, _megabytes(batch_bytes), SHARED_MEMORY),
        )
    options |= {"num_workers": count, "prefetch_factor": prefetched, "timeout": _POLL_SECONDS}
    running = _Workers(batch_bytes)
    try:
        running.start(DataLoader(dataset, worker_init_fn=_prepare_worker, **options))
        yield from running
    finally:
        running.end()


def fit_into_shared_memory(batch_bytes: int, workers: int) -> tuple[int, int | None]:
    """How many worker processes can be used, and how many batches each one prepares in advance.

    At most half of the free shared memory is used for more than one batch per worker. Without
    workers, the second number is None.

    Args:
        batch_bytes: the size of a batch.
        workers: the number of worker processes at most.

    Raises UserError when there is no space for one worker.
    """
    if not workers:
        return 0, None
    free = free_shared_memory()
    count = min(workers, free // batch_bytes - _IN_USE)
    if count < 1:
        raise UserError(_no_space(batch_bytes, free))
    return count, max(1, min(_PREFETCHED, free // (2 * count * batch_bytes)))


def _no_space(batch_bytes: int, free: int) -> str:
    return (
        f"worker processes cannot hand over batches of {_megabytes(batch_bytes)}: they need "
        f"{_megabytes((1 + _IN_USE) * batch_bytes)} of shared memory, but {_megabytes(free)} are "
        f"free in {SHARED_MEMORY}. Set `images: resident` (it needs no workers) or a smaller "
        "`batch`, or make the shared memory larger (docker run --shm-size=8g)"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


class _Workers:
    """The worker processes of one DataLoader, and its batches."""

    def __init__(self, batch_bytes: int) -> None:
        self.batch_bytes = batch_bytes
        self.iterator: Any = None
        self.processes: list[BaseProcess] = []
        self.waits = False  # whether this process waits for a batch

    def start(self, loader: DataLoader[Any]) -> None:
        before = set(multiprocessing.active_children())
        # Forked processes inherit the mask, so that no signal ends a worker before it is prepared.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            _running.append(self)
            self.iterator = iter(loader)
            # Torch raises an error wherever this process is when a worker dies. It is raised here
            # instead, and only while this process waits for a batch.
            _remove_worker_pids(id(self.iterator))
            self.iterator._worker_pids_set = False
            _handle_deaths()
        except OSError as error:  # the queues between processes need shared memory too
            self._raise_explained(error)
        finally:
            self.processes = [p for p in multiprocessing.active_children() if p not in before]
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                batch = self._next()
            except StopIteration:
                return
            yield batch

    def _next(self) -> Any:
        start = time.monotonic()
        notice = start + _NOTICE_SECONDS
        self.waits = True
        try:
            while True:
                self.raise_if_dead()
                try:
                    return next(self.iterator)
                except (RuntimeError, OSError, EOFError) as error:
                    if not str(error).startswith("DataLoader timed out"):
                        self._raise_explained(error)
                check_while_waiting()
                now = time.monotonic()
                if now > notice:
                    log.warning("no images for %.0f s: the storage is slow", now - start)
                    notice = now + 5 * _NOTICE_SECONDS
                if now > start + _LIMIT_SECONDS:
                    raise WorkerDiedError(
                        f"no batch of images arrived for {_LIMIT_SECONDS / 60:.0f} minutes: can "
                        "the images still be read? Run the same command again to continue"
                    )
        finally:
            self.waits = False

    def raise_if_dead(self) -> None:
        """Raises an error if a worker has ended by itself."""
        codes = [p.exitcode for p in self.processes if p.exitcode]
        if not codes:
            return
        if _SHARED_MEMORY_FULL in codes or -signal.SIGBUS in codes:
            raise UserError(_no_space(self.batch_bytes, free_shared_memory()))
        if codes[0] < 0:
            raise WorkerDiedError(
                f"a process that decodes images was killed by signal {-codes[0]}. If the memory "
                "was full, set fewer `cpus` in the profile, or a smaller batch. Run the same "
                "command again to continue"
            )
        raise WorkerDiedError(
            f"a process that decodes images ended with exit code {codes[0]}; the error is above"
        )

    def _raise_explained(self, error: Exception) -> NoReturn:
        """Raises an error that says what to do, or else the error itself."""
        if any(text in str(error) for text in _FULL_TEXTS):
            raise UserError(_no_space(self.batch_bytes, free_shared_memory())) from error
        end = time.monotonic() + _POLL_SECONDS
        lost = isinstance(error, ConnectionError | FileNotFoundError | EOFError)  # a connection
        while lost or str(error).startswith("DataLoader worker"):
            self.raise_if_dead()
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        raise error

    def end(self) -> None:
        """Ends the processes that still run."""
        if self.iterator is not None and not self.iterator._shutdown:
            # Torch's own way takes ten seconds for each worker that is busy.
            self.iterator._shutdown = True
            self._end_thread()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(_JOIN_SECONDS)
        if self in _running:
            _running.remove(self)

    def _end_thread(self) -> None:
        """Ends the thread that copies batches to page-locked memory, if there is one."""
        if thread := getattr(self.iterator, "_pin_memory_thread", None):
            queue = self.iterator._worker_result_queue
            queue.cancel_join_thread()  # a worker that was killed may have locked the queue
            self.iterator._pin_memory_thread_done_event.set()
            queue.put((None, None))  # the thread waits for it
            thread.join(_JOIN_SECONDS)


_running: list[_Workers] = []


@atexit.register  # runs before that of multiprocessing, which waits without a limit
def _end_all() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for workers in list(_running):
        workers.end()


def _handle_deaths() -> None:
    """Makes `_report_death` the handler of SIGCHLD, in the main thread."""
    before = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is threading.main_thread() and before is not _report_death:
        signal.signal(signal.SIGCHLD, _report_death)


def _report_death(number: int, frame: FrameType | None) -> None:
    """Raises an error if a worker died from which this process waits for a batch."""
    for workers in _running:
        if workers.waits:
            workers.raise_if_dead()


# ------------------------------------------------------------------------- in a worker process


def _prepare_worker(_: int) -> None:
    """Only the process that trains reacts to stop signals; it ends its workers itself.

    If a worker ended first, the training could not write its last checkpoint.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # By default, a batch that cannot be handed over is lost, and the training waits for it.
    Queue._on_queue_feeder_error = staticmethod(_end_after_error)  # type: ignore[attr-defined]
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_after_error(error: BaseException, batch: object) -> None:
    if any(text in str(error) for text in _FULL_TEXTS):
        os._exit(_SHARED_MEMORY_FULL)
    traceback.print_exception(error)
    os._exit(1)


def _end_with_parent(parent: int) -> None:
    """Ends this worker when the process that started it has ended."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
