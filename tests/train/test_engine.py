"""The training loop that pretraining, classifiers and detection share, on a tiny problem."""

import dataclasses
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salmask.errors import (
    DataGoneError,
    InterruptedRunError,
    NonFiniteLossError,
    StoppedWaitingError,
    WorkerDiedError,
)
from salmask.job import Job
from salmask.train import checkpoint, engine
from salmask.train.engine import Loop
from tests.helpers.states import differences

STEPS, PER_EPOCH = 10, 4  # two whole epochs, and two steps that no epoch contains


class Regression:
    """Momentum SGD on noise that is a function of the step; counts its steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.steps = nn.Linear(3, 1), 0
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)

    def step(self, batch: Tensor, number: int) -> dict[str, Any]:
        self.steps += 1
        loss = self.model(batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "mean": batch.mean()}


def batch_of(step: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(step))


def make_loop(regression: Regression, **changes: Any) -> Loop[Tensor]:
    return Loop(
        **{
            "title": "toy",
            "steps": STEPS,
            "steps_per_epoch": PER_EPOCH,
            "state": {"model": regression.model, "optimizer": regression.optimizer},
            "batches": lambda first: map(batch_of, range(first, STEPS)),
            "step": regression.step,
            "rate": lambda step: 1.0 / (step + 1),
        }
        | changes
    )


def newest(folder: Path) -> Any:
    return checkpoint.load_newest(folder, "f" * 12)


def test_history_has_the_means_of_each_epoch(job):
    regression, lengths = Regression(), []
    loop = make_loop(regression, between_epochs=lambda history: lengths.append(len(history)) or "")
    history = engine.train(loop, job, job.work)
    assert [(row["epoch"], row["lr"]) for row in history] == [(1, 1 / 4), (2, 1 / 8)]
    means = [sum(batch_of(s).mean().item() for s in range(n, n + 4)) / 4 for n in (0, 4)]
    assert [row["mean"] for row in history] == pytest.approx(means, abs=1e-6)
    assert lengths == [0, 1, 2]


def test_without_epochs_the_training_is_one_epoch(job):
    (row,) = engine.train(make_loop(Regression(), steps_per_epoch=0), job, job.work)
    assert (row["epoch"], row["lr"]) == (1, 1 / STEPS)
    assert [path.stem for path in checkpoint.saved(job.work)] == [f"step-{STEPS:09d}"]


@pytest.mark.parametrize("last", [1, 3, 4, 7, 9])
def test_a_killed_training_ends_in_the_same_bytes(job, tmp_path, monkeypatch, last):
    often = dataclasses.replace(job, checkpoint_minutes=0)
    undisturbed = engine.train(make_loop(Regression()), often, tmp_path / "undisturbed")

    save = checkpoint.save

    def die(folder: Path, step: int, state: dict[str, Any]) -> None:
        save(folder, step, state)
        if step == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint, "save", die)
        engine.train(make_loop(Regression()), often, job.work)
    resumed = Regression()
    assert engine.train(make_loop(resumed), often, job.work) == undisturbed
    assert resumed.steps == STEPS - last
    assert differences(newest(job.work), newest(tmp_path / "undisturbed")) == []


@pytest.mark.parametrize("at", [2, 4, STEPS])
def test_a_stop_signal_saves_this_very_step(job, at, capsys):
    regression = Regression()

    def step(batch: Tensor, number: int) -> dict[str, Any]:
        if number == at - 1:
            signal.raise_signal(signal.SIGUSR2)
        return regression.step(batch, number)

    handler = signal.getsignal(signal.SIGUSR2)
    message = f"toy was stopped by a signal at step {at} of 10; a checkpoint is saved"
    with pytest.raises(InterruptedRunError, match=message) as stopped:
        engine.train(make_loop(regression, step=step), job, job.work)
    assert stopped.value.number == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) is handler
    assert newest(job.work)["step"] == at == regression.steps
    resumed = Regression()
    engine.train(make_loop(resumed), job, job.work)
    assert resumed.steps == STEPS - at
    epoch = f"(epoch {at // PER_EPOCH + 1})"
    assert f"toy: continues after step {at} of 10 {epoch}\n" in capsys.readouterr().out


def test_a_signal_after_the_last_step_is_not_lost():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with engine.StopSignal() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert (stop.number, received) == (signal.SIGTERM, [])
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("kind", [DataGoneError, StoppedWaitingError, WorkerDiedError])
def test_images_that_do_not_arrive_leave_a_checkpoint(job, kind):
    def batches(first: int) -> Iterator[Tensor]:
        yield from map(batch_of, range(first, 6))
        raise kind("the disk is gone")

    with pytest.raises(kind, match="the disk is gone"):
        engine.train(make_loop(Regression(), batches=batches), job, job.work)
    assert newest(job.work)["step"] == 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training(job, value):
    regression = Regression()

    def step(batch: Tensor, number: int) -> dict[str, Any]:
        metrics = regression.step(batch, number)
        return metrics | ({"loss": metrics["loss"] * value} if number == 5 else {})

    loop = make_loop(regression, step=step, unit="iteration", advice="try `lr: 1`")
    expected = r"the loss of toy is not finite at iteration 6 \(loss .*, mean .*\): try `lr: 1`"
    with pytest.raises(NonFiniteLossError, match=expected + ".*step-000000005"):
        engine.train(loop, minutes(job, 0), job.work)
    assert newest(job.work)["step"] == 5
    again = make_loop(Regression(), step=step, may_diverge=True)
    assert not math.isfinite(engine.train(again, job, job.work)[-1]["loss"])


@pytest.mark.parametrize("place", [0, 3, 1000, -1, -40])
def test_a_training_resumed_before_a_damaged_checkpoint_ends_in_the_same_bytes(
    job, tmp_path, caplog, place
):
    often = minutes(job, 0)
    undisturbed = engine.train(make_loop(Regression()), often, tmp_path / "undisturbed")

    def batches(first: int) -> Iterator[Tensor]:
        yield from map(batch_of, range(first, 6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.train(make_loop(Regression(), batches=batches), often, job.work)
    last = checkpoint.saved(job.work)[0]
    content = bytearray(last.read_bytes())
    content[place] ^= 16
    last.write_bytes(content)
    resumed = Regression()
    assert engine.train(make_loop(resumed), often, job.work) == undisturbed
    assert f"{last} is damaged" in caplog.text
    assert resumed.steps == STEPS - int(last.stem.removeprefix("step-")) + 1
    assert differences(newest(job.work), newest(tmp_path / "undisturbed")) == []


def test_a_finished_training_takes_no_step(job):
    history = engine.train(
        make_loop(Regression()), dataclasses.replace(job, checkpoint_minutes=0), job.work
    )
    resumed = Regression()
    loop = make_loop(resumed, batches=lambda first: pytest.fail("made a batch"))
    assert engine.train(loop, job, job.work) == history
    assert resumed.steps == 0


def test_checkpoints_follow_the_clock(job, monkeypatch):
    seconds = iter(range(0, 1000, 50))  # 50 seconds a step
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(seconds))
    steps: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, state: steps.append(step))
    monkeypatch.setattr(engine, "progress", lambda *_, **__: _Silent())
    engine.train(make_loop(Regression(), steps_per_epoch=0), minutes(job, 2), job.work)
    assert steps == [3, 6, 9, 10]


def minutes(job: Job, count: float) -> Job:
    return dataclasses.replace(job, checkpoint_minutes=count)


class _Silent:
    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, *_: object) -> None: ...
