"""Measurements between the epochs of pretraining, and warnings about runs that collapse.

They decide no result: the training ends in the same bytes with and without them.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from salmask import collapse
from salmask.data.manifest import Manifest
from salmask.devices import place
from salmask.distributed import rank
from salmask.encoders.backbones import build_encoder
from salmask.encoders.heads import from_weights
from salmask.encoders.on_disk import Encoder
from salmask.evaluate import unlabelled
from salmask.evaluate.features import accuracy, extract_rows, labelled_splits, validation_split
from salmask.evaluate.knn import predict
from salmask.evaluate.subsets import labelled_ids
from salmask.job import Job
from salmask.params.probe import ProbeConfig
from salmask.params.run import RunConfig
from salmask.randomness import Draws
from salmask.train import engine
from salmask.train.pretrain import input_spec

log = logging.getLogger(__name__)
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN, as Wu et al. 2018
_DIGITS = 6  # significant digits in probe.csv


class Probe:
    """Measures a run between its epochs, and looks for signs of collapse.

    Each measurement is a row of probe.csv in `job.out`. Each new sign is logged as a warning. An
    object is a `salmask.train.pretrain.Probe`.

    Args:
        config: of the run.
        settings: the section `probe`; None for no measurements.
        job: of the run.
    """

    def __init__(self, config: RunConfig, settings: ProbeConfig | None, job: Job) -> None:
        self.config, self.settings, self.job = config, settings, job
        self.rows: list[dict[str, float]] = []  # of probe.csv
        self.signs: dict[str, str] = {}
        self.note = ""  # the newest measurement, as a text

    def __call__(self, framework: nn.Module, manifest: Manifest, history: engine.History) -> str:
        """Measures if the epoch is due. Returns a text for the progress lines.

        All processes of a group call this together; the first one writes.
        """
        epoch, file = len(history), self.job.out / "probe.csv"
        # A resumed training may repeat epochs.
        self.rows = rows = [row for row in self.rows if row["epoch"] < epoch]
        if self.settings and (
            epoch % self.settings.every == 0 or epoch == self.config.train.epochs
        ):
            measured = measure(framework, self.config, manifest, self.settings.images, self.job)
            measured = {name: float(f"{value:.{_DIGITS}g}") for name, value in measured.items()}
            steps = len(manifest.ids("train")) // self.config.train.batch
            rows.append({"epoch": epoch, "step": epoch * steps, **measured})
            engine.write_history(file, rows, dict.fromkeys(name for row in rows for name in row))
            self.note = _text(rows[-1])
        signs = collapse.signs(history, rows)
        for name in signs.keys() - self.signs.keys():
            if rank() == 0:
                log.warning("%s: %s", self.config.name, signs[name])
        self.signs = signs
        return ", ".join(filter(None, [self.note, "signs of collapse" if signs else ""]))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.rows = state_dict["rows"]


@torch.inference_mode()
def measure(
    framework: nn.Module, config: RunConfig, manifest: Manifest, images: int, job: Job
) -> dict[str, float]:
    """Scores of the encoder of a framework in training, as it would be exported now.

    The framework and the states of random generators stay as they are: the scores are those of a
    copy in eval mode, in float32.

    Args:
        framework: see `salmask.frameworks`.
        config: of the run.
        manifest: the images.
        images: the largest number of images of a split.
        job: device and workers.

    Returns:
        `images`, the number of held-out images (training images, where none are held out), and
        `rankme` and `spread` of their embeddings; with labels, `train_images` and `knn_top1` too.
    """
    job = replace(job, features=None)  # these features are used once
    split = validation_split(manifest)
    scored = manifest.labelled() and split in labelled_splits(manifest)
    with torch.random.fork_rng(devices=[]):  # loaders and new networks draw from the generator
        encoder, head = _exported(framework, config, job.device)
        ids = subset(labelled_ids(manifest, split) if scored else manifest.ids(split), images)
        held_out = extract_rows(encoder, manifest, ids, job)
        row = {"images": len(ids)} | unlabelled.scores(head(held_out.features))
        if scored:
            ids = subset(labelled_ids(manifest, "train"), images)
            train = extract_rows(encoder, manifest, ids, job)
            predicted = predict(train, held_out.features, NEIGHBOURS, TEMPERATURE)
            top1 = accuracy(predicted, held_out.labels)
            row |= {"train_images": len(ids), "knn_top1": top1}
    return row


def subset(ids: Tensor, count: int) -> Tensor:
    """At most `count` of the rows `ids` (n,), in order: those with the smallest hash, which depends
    on nothing but the number of the row."""
    order = Draws.of(0, 0, ids).uniform("probe", 1)[:, 0].argsort(stable=True)
    return ids[order[:count].sort().values]


def _exported(
    framework: nn.Module, config: RunConfig, device: torch.device
) -> tuple[Encoder, nn.Module]:
    """Copies of a framework's encoder and projection head, in eval mode, without gradients."""
    network = build_encoder(config.encoder)
    network.load_state_dict(framework.get_submodule("encoder").state_dict())
    encoder = Encoder(network, config.encoder, input_spec(config)).eval().requires_grad_(False)
    head = from_weights(getattr(framework, "projector", nn.Sequential()).state_dict())
    return place(encoder, device), place(head, device)


def _text(row: Mapping[str, float]) -> str:
    shown = {name: row[name] for name in ("knn_top1", "rankme", "spread") if name in row}
    scores = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"epoch {row['epoch']:.0f}: {scores}"
