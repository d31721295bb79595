"""The pretraining loop: the only one, for every framework and mask.

Read from top to bottom: load what is needed, go on from the newest checkpoint if there is one,
step, and at the end write the encoder. Randomness is a function of (seed, epoch, sample), so that
an interrupted run ends in the same bytes as one that was left alone.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmask.data import manifest as manifests
from salmask.data.loader import Schedule, branches, pairs
from salmask.distributed import all_reduce_max, broadcast_from_first, rank
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.on_disk import InputSpec
from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError
from salmask.files import write_rows
from salmask.job import Job
from salmask.masks.on_disk import save_masker
from salmask.masks.strategies import input_filter
from salmask.params.run import RunConfig
from salmask.progress import progress
from salmask.saliency.store import SaliencyStore
from salmask.train import checkpoint
from salmask.train.batches import make_batch
from salmask.train.learner import Learner
from salmask.train.stopping import StopSignal, saving


@dataclass(frozen=True)
class Inputs:
    """Where a pretraining finds what it needs. localizer: what localizer.json says of the network
    that must have made the store, or None for any."""

    data: Path
    saliency: Path
    localizer: Mapping[str, Any] | None = None


def pretrain(config: RunConfig, inputs: Inputs, job: Job) -> dict[str, float]:
    """Trains one run and writes encoder.safetensors, encoder.json, projector.safetensors and
    history.csv to `job.out`.

    Where a process group is there, all its processes call this together; the first one writes.
    Returns the last row of the history. Raises InterruptedRunError after SIGTERM or SIGUSR2, and
    DataGoneError when the folder of images vanishes, with a checkpoint saved in `job.work`;
    NonFiniteLossError when the loss leaves the numbers.
    """
    with StopSignal() as stop:
        return _pretrain(config, inputs, job, stop)


def _pretrain(config: RunConfig, inputs: Inputs, job: Job, stop: StopSignal) -> dict[str, float]:
    seed, device = job.seed, job.device
    rows = manifests.load(inputs.data)
    schedule = Schedule(seed, rows.ids("train"), config.train.batch, config.train.epochs)
    if not schedule.steps_per_epoch:
        raise UserError(
            f"train.batch: {config.train.batch} is more than the {len(schedule.ids)} training "
            "images"
        )
    steps = schedule.steps_per_epoch * config.train.epochs
    learner = Learner(config, seed, schedule.steps_per_epoch, device)
    store = None
    if learner.mask.reads_saliency:
        store = SaliencyStore.open(inputs.saliency, rows.digest, inputs.localizer, device)

    step, history, sums = 0, [], {}
    state = broadcast_from_first(lambda: checkpoint.load_newest(job.work, job.fingerprint))
    if state is not None:
        learner.load_state_dict(state["learner"])
        step, history, sums = state["step"], state["history"], state["sums"]

    def save() -> None:
        if rank() == 0:
            place = {"step": step, "history": history, "sums": sums}
            told = {"fingerprint": job.fingerprint, "learner": learner.state_dict()}
            checkpoint.save(job.work, step, told | place)

    saved_at = time.monotonic()
    batches = pairs(
        rows,
        config.view,
        schedule,
        images=config.train.images,
        device=device,
        workers=job.workers,
        start=divmod(step, schedule.steps_per_epoch),
        branches=branches(learner.mask.extra_views),
    )
    with progress(f"pretrain {config.name}", steps, "steps", done=step) as bar:
        for crops in saving(batches, save):
            seen = learner.step(make_batch(crops, config, seed, store), step)
            step += 1
            if not math.isfinite(seen["loss"]):
                last = next(iter(checkpoint.saved(job.work)), "none")
                raise NonFiniteLossError(
                    f"the loss is {seen['loss']} at step {step}; last good checkpoint: {last}"
                )
            sums = {name: sums.get(name, 0.0) + value for name, value in seen.items()}
            bar.advance(1, f"loss {seen['loss']:.3f}")
            if step % schedule.steps_per_epoch == 0:
                means = {k: v / schedule.steps_per_epoch for k, v in sums.items()}
                epoch = {"epoch": step // schedule.steps_per_epoch, "lr": learner.rate(step - 1)}
                history.append(epoch | means)
                sums = {}
                write_history(job.out / "history.csv", history)
            asked = all_reduce_max(
                stop.asked
            )  # a signal that comes from here on is the next step's
            due = time.monotonic() - saved_at > 60 * job.checkpoint_minutes
            if due or asked or (step % schedule.steps_per_epoch == 0 and step < steps):
                save()
                saved_at = time.monotonic()
            if asked and step < steps:
                broadcast_from_first(lambda: None)  # nobody leaves before the checkpoint is written
                raise InterruptedRunError(
                    f"asked to stop at step {step} of {steps}; a checkpoint is saved", asked
                )

    write_history(job.out / "history.csv", history)
    if rank() == 0:
        network, side = learner.framework.get_submodule("encoder"), config.view.size
        spec = InputSpec.for_views(side, input_filter(config.mask, side))
        encoder_file.save(network.state_dict(), config.encoder, spec, job.out)
        encoder_file.save_projector(learner.framework, job.out)
        if learner.adversary:
            save_masker(learner.adversary.masker, job.out)
    return history[-1]


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One row per epoch as CSV, from the first process."""
    if rank():
        return
    rows = ({k: f"{v:.8g}" for k, v in row.items()} for row in history)
    write_rows(path, rows, history[0])
