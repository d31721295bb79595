"""The pretraining loop: the only one, for every framework and mask.

Read from top to bottom: load what is needed, go on from the newest checkpoint if there is one,
step, and at the end write the encoder. Randomness is a function of (seed, epoch, sample), so that
an interrupted run ends in the same bytes as one that was left alone.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from salmask import encoder_file, frameworks
from salmask.config import RunConfig
from salmask.data import manifest as manifests
from salmask.data.loader import Crops, Schedule, branches, pairs
from salmask.devices import autocast, place
from salmask.errors import DataGoneError, InterruptedRunError, NonFiniteLossError, UserError
from salmask.files import write_rows
from salmask.job import Job
from salmask.masks import strategies
from salmask.progress import progress
from salmask.saliency.store import SaliencyStore
from salmask.train import checkpoint
from salmask.train.adversary import Adversary
from salmask.train.batches import make_batch
from salmask.train.optim import build_optimizer, learning_rate, rate_share, set_rates


@dataclass(frozen=True)
class Inputs:
    """Where a pretraining finds what it needs. localizer: what localizer.json says of the network
    that must have made the store, or None for any."""

    data: Path
    saliency: Path
    localizer: Mapping[str, Any] | None = None


def pretrain(config: RunConfig, inputs: Inputs, job: Job) -> dict[str, float]:
    """Trains one run and writes encoder.safetensors, encoder.json and history.csv to `job.out`.

    Returns the last row of the history. Raises InterruptedRunError after SIGTERM or SIGUSR2, and
    DataGoneError when the folder of images vanishes, with a checkpoint saved in `job.work`;
    NonFiniteLossError when the loss leaves the numbers.
    """
    seed, device = job.seed, job.device
    rows = manifests.load(inputs.data)
    schedule = Schedule(seed, rows.ids("train"), config.train.batch, config.train.epochs)
    if not schedule.steps_per_epoch:
        raise UserError(
            f"train.batch: {config.train.batch} is more than the {len(schedule.ids)} training "
            "images"
        )
    steps = schedule.steps_per_epoch * config.train.epochs
    torch.manual_seed(seed)  # initial weights and queue; nothing draws from it afterwards
    model = frameworks.build(config.framework, config.encoder, config.train.batch, steps)
    model = place(model, device)
    optimizer = build_optimizer(model, config.train)
    mask = strategies.build(config.mask, model.wiring, config.view)
    adversary = Adversary(place(mask.masker, device)) if mask.masker else None
    store = None
    if mask.reads_saliency:
        store = SaliencyStore.open(inputs.saliency, rows.digest, inputs.localizer, device)

    step, history, sums = 0, [], {}
    state = checkpoint.load_newest(job.work, job.fingerprint)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if adversary:
            adversary.load_state_dict(state["adversary"])
        step, history, sums = state["step"], state["history"], state["sums"]

    def save() -> None:
        checkpoint.save(
            job.work,
            step,
            {
                "fingerprint": job.fingerprint,
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "adversary": adversary.state_dict() if adversary else None,
                "history": history,
                "sums": sums,
            },
        )

    stop = _StopFlag()
    forward = torch.compile(model) if config.train.compile else model
    saved_at = time.monotonic()
    batches = pairs(
        rows,
        config.view,
        schedule,
        images=config.train.images,
        device=device,
        workers=job.workers,
        start=divmod(step, schedule.steps_per_epoch),
        branches=branches(mask.extra_views),
    )
    model.train()
    with progress(f"pretrain {config.name}", steps, "steps", done=step) as bar, stop:
        for crops in _saving(batches, save):
            rate = learning_rate(config.train, step, schedule.steps_per_epoch)
            set_rates(optimizer, config.train, rate)
            batch = make_batch(crops, config, seed, store)
            with autocast(device, config.train.precision):
                seen: dict[str, Tensor] = forward(batch.views(mask), step / steps)
            optimizer.zero_grad(set_to_none=True)
            seen["loss"].backward()
            optimizer.step()
            if adversary:
                share = rate_share(config.train, step, schedule.steps_per_epoch)
                precise = autocast(device, config.train.precision)
                seen |= adversary.step(model, batch, share, precise)
            step += 1

            values = torch.stack([v.detach().float() for v in seen.values()]).tolist()  # one sync
            sums = {k: sums.get(k, 0.0) + v for k, v in zip(seen, values, strict=True)}
            loss = values[list(seen).index("loss")]
            if not math.isfinite(loss):
                last = next(iter(checkpoint.saved(job.work)), "none")
                raise NonFiniteLossError(
                    f"the loss is {loss} at step {step}; last good checkpoint: {last}"
                )
            bar.advance(1, f"loss {loss:.3f}")
            if step % schedule.steps_per_epoch == 0:
                means = {k: v / schedule.steps_per_epoch for k, v in sums.items()}
                history.append({"epoch": step // schedule.steps_per_epoch, "lr": rate} | means)
                sums = {}
                write_history(job.out / "history.csv", history)
            due = time.monotonic() - saved_at > 60 * job.checkpoint_minutes
            if due or stop.asked or (step % schedule.steps_per_epoch == 0 and step < steps):
                save()
                saved_at = time.monotonic()
            if stop.asked and step < steps:
                raise InterruptedRunError(
                    f"asked to stop at step {step} of {steps}; a checkpoint is saved"
                )

    write_history(job.out / "history.csv", history)
    encoder_file.save(model.get_submodule("encoder"), config, job.out)
    if adversary:
        encoder_file.save_masker(adversary.masker, job.out)
    return history[-1]


def _saving(batches: Iterator[Crops], save: Callable[[], None]) -> Iterator[Crops]:
    """The batches; `save` is called when they end because the images are gone."""
    try:
        yield from batches
    except DataGoneError:
        save()
        raise


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One row per epoch as CSV."""
    rows = ({k: f"{v:.8g}" for k, v in row.items()} for row in history)
    write_rows(path, rows, history[0])


class _StopFlag:
    """Turns SIGTERM and SIGUSR2 into a flag that the loop reads between two steps."""

    asked = False

    def __enter__(self) -> "_StopFlag":
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGUSR2)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
