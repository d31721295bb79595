"""Pretraining of one run, for every framework and mask.

Random numbers are a function of (seed, epoch, sample), so that an interrupted run ends in the same
bytes as an undisturbed one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salmask import frameworks
from salmask.data import manifest as manifests
from salmask.data.loader import Crops, Schedule, training_views
from salmask.data.manifest import Manifest
from salmask.data.views import branch_names
from salmask.devices import autocast, deterministic, place
from salmask.distributed import all_reduce_mean, data_parallel, rank, world_size
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.on_disk import InputSpec
from salmask.errors import UserError
from salmask.job import Job
from salmask.masks.on_disk import save_masker
from salmask.masks.options import input_filter
from salmask.masks.wiring import wire_mask
from salmask.params.run import RunConfig
from salmask.saliency.store import SaliencyStore
from salmask.train import engine
from salmask.train.adversary import Adversary
from salmask.train.batches import Batch, make_batch
from salmask.train.optim import build_optimizer, learning_rate, rate_share, set_rates


@dataclass(frozen=True)
class Inputs:
    """The inputs of pretraining.

    Args:
        data: folder of the manifest.
        saliency: the saliency store.
        localizer: content of localizer.json of the localizer that must have made the store; None
            accepts any.
    """

    data: Path
    saliency: Path
    localizer: Mapping[str, Any] | None = None


class Probe(engine.Stateful, Protocol):
    """Measures a run between its epochs. Its state goes into checkpoints."""

    def __call__(self, framework: nn.Module, manifest: Manifest, history: engine.History) -> str:
        """Called when `engine.Loop.between_epochs` is. It must not change what the training
        computes. Returns a text for the progress lines."""
        ...


def pretrain(
    config: RunConfig, inputs: Inputs, job: Job, probe: Probe | None = None
) -> dict[str, float]:
    """Trains one run and writes encoder.safetensors, encoder.json, projector.safetensors and
    history.csv to `job.out`; masker.safetensors too if the mask learns.

    With `train.epochs: 0` the encoder has its initial weights, and there is no history.csv.

    All processes of a group call this together; the first one writes. Returns the last row of the
    history. Raises UserError for a configuration that does not fit, and what `engine.train` raises.

    Args:
        config: the run.
        inputs: manifest and saliency.
        job: device, seed and folders.
        probe: measures the run between epochs.
    """
    manifest = manifests.load(inputs.data)
    schedule = Schedule(job.seed, manifest.ids("train"), config.train.batch, config.train.epochs)
    if not schedule.steps_per_epoch:
        raise UserError(
            f"train.batch: {config.train.batch} is more than the {len(schedule.ids)} training "
            "images; set a smaller batch"
        )
    learner = Learner(config, job.seed, schedule.steps_per_epoch, job.device)
    labels = None
    if learner.wiring.classes:
        labels = training_labels(manifest, learner.wiring.classes).to(job.device)
    store = None
    if learner.mask.reads_saliency:
        store = SaliencyStore.open(inputs.saliency, manifest.digest, inputs.localizer, job.device)

    def batches(first_step: int) -> Iterator[Crops]:
        return training_views(
            manifest,
            config.view,
            schedule,
            images=config.train.images,
            device=job.device,
            workers=job.workers,
            start=divmod(first_step, schedule.steps_per_epoch),
            branches=branch_names(learner.mask.extra_views),
        )

    def step(crops: Crops, number: int) -> dict[str, Tensor]:
        return learner.step(make_batch(crops, config, job.seed, store, labels), number)

    def write_history(history: engine.History) -> None:
        if history:
            engine.write_history(job.out / "history.csv", history, history[0])

    def between_epochs(history: engine.History) -> str:
        write_history(history)
        return probe(learner.framework, manifest, history) if probe else ""

    loop = engine.Loop(
        title=f"pretrain {config.name}",
        steps=learner.steps,
        steps_per_epoch=schedule.steps_per_epoch,
        state={"learner": learner} | ({"probe": probe} if probe else {}),
        batches=batches,
        step=step,
        rate=learner.rate,
        between_epochs=between_epochs,
        advice="try a smaller `train.lr` or a longer `train.warmup_epochs`",
        images=config.train.batch,
    )
    with deterministic(config.train.deterministic):
        history = engine.train(loop, job, job.work)
    write_history(history)
    if rank() == 0:
        network = learner.framework.get_submodule("encoder")
        encoder_file.save(network.state_dict(), config.encoder, input_spec(config), job.out)
        encoder_file.save_projector(learner.framework, job.out)
        if learner.adversary:
            save_masker(learner.adversary.masker, job.out)
    return history[-1] if history else {}


def training_labels(manifest: Manifest, classes: int) -> Tensor:
    """The labels (N,) int64 of the manifest, for a framework that reads those of training images.

    Raises UserError when a training image has no label, or when there are not `classes` classes.
    """
    if classes != len(manifest.classes):
        raise UserError(
            f"framework.classes: {classes}, but {manifest.name} has {len(manifest.classes)} "
            f"classes; set `classes: {len(manifest.classes)}`"
        )
    labels = manifest.labels[manifest.ids("train")]
    if unlabelled := int((labels < 0).sum()):
        raise UserError(
            f"framework: {unlabelled} of the {len(labels)} training images of {manifest.name} have "
            "no label, which supervised training needs; leave them out, or choose another framework"
        )
    return manifest.labels


def input_spec(config: RunConfig) -> InputSpec:
    """The input of the encoder of a run. Raises UserError for a mask that does not fit."""
    side = config.view.size
    return InputSpec.for_views(side, input_filter(config.mask, side), config.view.shorter)


class Learner:
    """Everything that changes during pretraining, equal in all processes: a framework and its
    optimizer, and the mask's adversary if the mask learns."""

    def __init__(
        self, config: RunConfig, seed: int, steps_per_epoch: int, device: torch.device
    ) -> None:
        """Raises UserError for a configuration that does not fit."""
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.steps = steps_per_epoch * config.train.epochs
        if config.train.batch % world_size():
            raise UserError(
                f"train.batch: {config.train.batch} cannot be shared evenly by {world_size()} "
                f"processes; set a multiple of {world_size()}"
            )
        torch.manual_seed(seed)  # initial weights and queue; nothing draws from it afterwards
        built = frameworks.build(config.framework, config.encoder, config.train.batch)
        self.framework = place(built, device).train()
        self.wiring = built.wiring
        self.mask = wire_mask(config.mask, self.wiring, config.view)
        self.adversary = Adversary(place(self.mask.masker, device)) if self.mask.masker else None
        self.optimizer = build_optimizer(self.framework, config.train)
        if config.train.compile:
            for network in self.framework.children():  # encoders and heads; losses stay eager
                network.compile()
        self.running_statistics = _running_statistics(self.framework)
        self.forward = data_parallel(self.framework, device)

    def rate(self, step: int) -> float:
        """The learning rate at a global step."""
        return learning_rate(self.config.train, step, self.steps_per_epoch)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Trains on this process's share of a batch. The host does not wait for the device.

        Returns the metrics of the framework and the adversary, () float32, means over all
        processes.
        """
        train = self.config.train
        set_rates(self.optimizer, train, self.rate(step))
        views = batch.views(self.mask)  # always in float32: filters are small differences
        with autocast(self.device, train.precision):
            metrics: dict[str, Tensor] = self.forward(views, step / self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        metrics["loss"].backward()
        self.framework.finish_step()
        self.optimizer.step()
        if self.adversary:
            share = rate_share(train, step, self.steps_per_epoch)
            precision = autocast(self.device, train.precision)
            metrics = metrics | self.adversary.step(self.framework, batch, share, precision)
        all_reduce_mean(self.running_statistics)
        values = torch.stack([value.detach().float() for value in metrics.values()])
        all_reduce_mean([values])
        return dict(zip(metrics, values.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {
            "framework": self.framework.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.framework.load_state_dict(state["framework"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])


def _running_statistics(framework: nn.Module) -> list[Tensor]:
    """The running means and variances that training updates. They differ between processes because
    each process normalises its own groups of images."""
    norms = [m for m in framework.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    statistics = [statistic for n in norms for statistic in (n.running_mean, n.running_var)]
    return [statistic for statistic in statistics if statistic is not None]
