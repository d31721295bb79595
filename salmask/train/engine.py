"""The loop that all trainings share: pretraining, classifiers and detectors.

The engine resumes from the newest checkpoint, checks that the loss is finite, shows progress, keeps
one row of history per epoch, and writes checkpoints beside the training. An interrupted training
ends in the same bytes as an undisturbed one, provided that each step is a function of the loop's
state and of the step's number.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from salmask.distributed import broadcast_from_first, rank, world_size
from salmask.errors import (
    DataGoneError,
    InterruptedRunError,
    NonFiniteLossError,
    StoppedWaitingError,
    WorkerDiedError,
)
from salmask.files import write_rows
from salmask.job import Job
from salmask.progress import progress
from salmask.stop_signals import StopSignal
from salmask.train import checkpoint
from salmask.train.readings import Reading
from salmask.train.speed import Speed

T = TypeVar("T")
History = list[dict[str, Any]]


class Stateful(Protocol):
    """A part of a training whose state goes into checkpoints."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


@dataclass(frozen=True)
class Loop(Generic[T]):
    """The parts of a training loop.

    Args:
        title: the name in progress lines and messages.
        steps: number of steps of the whole training.
        state: the objects that change during training, by name: networks, optimizers.
        batches: returns the batches from a step, counted from 0, to the last step.
        step: trains on a batch, given the step's number. Returns the metrics of the step, among
            them `loss`: scalar tensors of one device, equal in all processes. A step must not wait
            for the device.
        rate: the learning rate at a step, for the history.
        steps_per_epoch: 0 if the whole training is one epoch.
        between_epochs: called with the history before the first epoch, after each epoch, and when a
            training resumes between two epochs, in all processes. A resumed training may repeat the
            calls of its last epochs. Returns a text for the progress lines of the next epoch.
        unit: the name of a step in messages.
        advice: what to do when the loss is not finite.
        may_diverge: whether training continues when the loss is not finite.
        images: images per step, for the measured speed; 0 if it varies.
    """

    title: str
    steps: int
    state: Mapping[str, Stateful]
    batches: Callable[[int], Iterator[T]]
    step: Callable[[T, int], Mapping[str, Tensor]]
    rate: Callable[[int], float]
    steps_per_epoch: int = 0
    between_epochs: Callable[[History], str] = lambda history: ""
    unit: str = "step"
    advice: str = "try a lower learning rate"
    may_diverge: bool = False
    images: int = 0


def train(loop: Loop[T], job: Job, folder: Path) -> History:
    """Runs a loop to its end, from the newest checkpoint in `folder` if there is one.

    All processes of a group call this together. The first one writes checkpoints in a thread: every
    `job.checkpoint_minutes`, at the end, and when the training is interrupted.

    The metrics of a step are read after the launch of the next one, so that the device does not
    idle. With several processes, a stop signal is sent to all of them with the metrics. They then
    stop one step later than a single process does. `speed.csv` in `folder` records the speed of
    each epoch; see `salmask.train.speed`.

    Returns:
        One row per epoch: `epoch` (from 1), `lr` at its last step, and the mean of each metric.

    Raises:
        InterruptedRunError: after SIGTERM or SIGUSR2; a checkpoint is saved.
        DataGoneError: when the folder of images vanishes; a checkpoint is saved.
        WorkerDiedError: when a process that decodes images was killed; a checkpoint is saved.
        NonFiniteLossError: when the loss is not finite.
        OSError: when a checkpoint cannot be written.
    """
    per_epoch = loop.steps_per_epoch or loop.steps
    step = 0
    history: History = []
    sums: dict[str, float] = {}  # of the metrics since the epoch began
    unread: deque[Reading] = deque()
    saved = broadcast_from_first(lambda: checkpoint.load_newest(folder, job.fingerprint))
    if saved is not None:
        for name, part in loop.state.items():
            part.load_state_dict(saved["state"][name])
        step, history, sums = saved["step"], saved["history"], saved["sums"]
        if rank() == 0:
            epoch = f" (epoch {step // per_epoch + 1})" if loop.steps_per_epoch else ""
            print(f"{loop.title}: continues after {loop.unit} {step} of {loop.steps}{epoch}")
    note = loop.between_epochs(history) if step % per_epoch == 0 else ""
    if step == loop.steps:
        return history
    loss = math.nan

    def read() -> int:
        """Adds the metrics of the oldest unread step to the sums. Returns its agreed number."""
        nonlocal sums, loss
        reading = unread.popleft()
        metrics, number = reading.read()
        loss = metrics["loss"]
        if not loop.may_diverge and not math.isfinite(loss):
            writer.wait()
            shown = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            raise NonFiniteLossError(
                f"the loss of {loop.title} is not finite at {loop.unit} {reading.step} "
                f"({shown}): {loop.advice}; the last good checkpoint is "
                f"{next(iter(checkpoint.saved(folder)), 'missing')}"
            )
        sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        return number

    def save() -> None:
        while unread:
            read()
        if rank() == 0:
            content = {
                "fingerprint": job.fingerprint,
                "step": step,
                "history": history,
                "sums": sums,
                "state": {name: part.state_dict() for name, part in loop.state.items()},
            }
            writer.write(step, content)

    batches = loop.batches(step)
    first = [next(batches)]  # may take minutes, in which a signal stops the process at once
    saved_at = time.monotonic()
    speed = Speed(folder / "speed.csv", loop.images)
    with (
        StopSignal() as stop,
        checkpoint.Writer(folder) as writer,
        progress(loop.title, loop.steps, f"{loop.unit}s", done=step) as bar,
    ):
        try:
            for batch in speed.waiting_for(itertools.chain(first, batches)):
                metrics = loop.step(batch, step)
                step += 1
                due = checkpoint.is_due(saved_at, job.checkpoint_minutes)
                # A signal that arrives after this line is handled at the next step.
                number = 2 * stop.number + due
                unread.append(Reading(step, metrics, number))
                agreed = number if world_size() == 1 else 0
                epoch_ends = step % per_epoch == 0
                # The newest metrics are read now only if the history or a checkpoint needs them.
                while unread and (len(unread) > 1 or epoch_ends or step == loop.steps or agreed):
                    agreed = max(agreed, read())
                shown = f"loss {loss:.3f}" if math.isfinite(loss) else ""
                bar.advance(1, ", ".join(filter(None, [shown, speed.text(), note])))
                writer.raise_error()
                if epoch_ends:
                    means = {name: total / per_epoch for name, total in sums.items()}
                    row = {"epoch": step // per_epoch, "lr": loop.rate(step - 1)}
                    history.append(row | means)
                    sums = {}
                if agreed or step == loop.steps:
                    save()
                    saved_at = time.monotonic()
                if signal_number := agreed // 2:
                    writer.wait()
                    broadcast_from_first(lambda: None)  # wait until the checkpoint is written
                    raise InterruptedRunError(
                        f"{loop.title} was stopped by a signal at {loop.unit} {step} of "
                        f"{loop.steps}; a checkpoint is saved",
                        signal_number,
                    )
                if epoch_ends:
                    if rank() == 0:
                        speed.end_epoch(step // per_epoch)
                    note = loop.between_epochs(history)
        except (DataGoneError, StoppedWaitingError, WorkerDiedError):
            save()
            raise
    return history


def write_history(path: Path, history: History, columns: Iterable[str]) -> None:
    """Writes a history as CSV, from the first process."""
    if rank() == 0:
        rows = (
            {name: f"{v:.8g}" if isinstance(v, float) else v for name, v in row.items()}
            for row in history
        )
        write_rows(path, rows, columns)
