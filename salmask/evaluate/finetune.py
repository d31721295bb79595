"""Fine-tuning: the encoder and a classifier are trained on a share of the labels.

20 epochs of SGD, with one rate for the trunk and one for the head, times 0.2 at epochs 12 and 16
(Caron et al. 2020). Batch norm is in training mode; views are crops and flips; the encoder filters
its input as in pretraining. The last epoch is the result.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.datasets.folders import read_text
from salmask.devices import autocast
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate import Evaluation, classifier
from salmask.evaluate.classifier import ClassifierSchedule, History
from salmask.evaluate.features import extract, labelled_splits, top, width
from salmask.evaluate.subsets import balanced, labelled_ids
from salmask.files import file_digest
from salmask.job import Job
from salmask.params.ranges import (
    Milestones,
    Momentum,
    NonNegative,
    Percent,
    Positive,
    PositiveInt,
    Several,
    Sha256,
)
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params
from salmask.randomness import Draws

# Percent of the labels -> the rates of trunk and head at batch 256.
PRESETS: dict[str, dict[int, tuple[float, float]]] = {
    "mscn": {1: (0.002, 0.5)},
    "mixmask": {1: (0.001, 1.0), 10: (0.001, 0.1), 100: (0.001, 0.01)},
}


@dataclass(frozen=True, config=STRICT)
class PublishedList:
    """A published list of training images, such as SimCLR's 1% of ImageNet.

    Args:
        path: a text file with one file name per line.
        sha256: of the file. It is required because DVC does not watch the file.
    """

    path: Path
    sha256: Sha256


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    preset: Literal["mscn", "mixmask"] = "mixmask",
    shares: Several[Percent] | None = None,
    lists: Mapping[Percent, PublishedList] | None = None,
    lr: Positive | None = None,
    head_lr: Positive | None = None,
    batch: PositiveInt = 256,
    epochs: PositiveInt = 20,
    milestones: Milestones = (12, 16),
    gamma: NonNegative = 0.2,
    momentum: Momentum = 0.9,
    weight_decay: NonNegative = 0.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    images: Literal["auto", "stream", "resident"] = "auto",
) -> dict[str, float]:
    """Accuracy in percent after the last epoch. Writes history.csv.

    Args:
        encoders: `trained`.
        manifest: the images.
        job: device, seed and folders.
        preset: published rates for each share.
        shares: of the labels in percent; null for all shares of the preset.
        lists: published lists of images, by share, instead of random subsets.
        lr: rate of the trunk at batch 256, scaled with the batch; null for the preset's.
        head_lr: the same for the classifier.
        batch: global batch size.
        epochs: number of epochs.
        milestones: epochs, counted from 0, at whose start `gamma` multiplies the rates.
        gamma: see `milestones`.
        momentum: of SGD.
        weight_decay: L2 penalty.
        precision: `auto` is bfloat16 on CUDA and float32 elsewhere.
        images: as in `train`.

    Returns:
        `finetune<share>_top1`, and `finetune<share>_top5` for more than 5 classes; on splits other
        than `val` with the prefix `<split>_`. Nothing without labels.

    Raises:
        UserError: for a share without rates, or a list that does not fit.
    """
    history: History = []
    classifier.write_history(job, history)
    if not manifest.labelled():
        return {}
    metrics = {}
    for share, (rate, head_rate) in rates_of_shares(preset, shares, lr, head_lr).items():
        ids = rows_of_share(manifest, share, job.seed, (lists or {}).get(share))
        course = ClassifierSchedule(
            min(batch, len(ids)), epochs, "step", milestones, gamma=gamma, images=images
        )
        torch.manual_seed(job.seed)
        encoder = copy.deepcopy(encoders["trained"]).requires_grad_(True)
        head = classifier.head(width(encoder, job), len(manifest.classes), job.device)
        scale = course.batch / 256
        optimizer = torch.optim.SGD(
            [
                {"params": list(encoder.parameters()), "lr": rate * scale},
                {"params": list(head.parameters()), "lr": head_rate * scale},
            ],
            momentum=momentum,
            weight_decay=weight_decay,
        )
        model, name = nn.Sequential(encoder, head).train(), f"finetune{share}"

        def loss(views: Tensor, labels: Tensor, model: nn.Module = model) -> Tensor:
            with autocast(job.device, precision):
                logits = model(views)
            return F.cross_entropy(logits.float(), labels)

        side = encoder.spec.size
        history += classifier.train(model, loss, optimizer, manifest, ids, side, course, job, name)
        classifier.write_history(job, history)
        model.eval()
        for split, prefix in labelled_splits(manifest).items():
            held = extract(encoder, manifest, split, replace(job, features=None))  # used once
            with torch.inference_mode():
                logits = head(held.features)
            metrics[f"{prefix}{name}_top1"] = top(logits, held.labels, 1)
            if len(manifest.classes) > 5:
                metrics[f"{prefix}{name}_top5"] = top(logits, held.labels, 5)
    return metrics


def rates_of_shares(
    preset: str, shares: tuple[int, ...] | None, lr: float | None, head_lr: float | None
) -> dict[int, tuple[float, float]]:
    """The shares to train on, in percent of the labels, with the rates of trunk and head at batch
    256.

    Raises UserError for a share without rates in the preset and the options.
    """
    known, rates = PRESETS[preset], {}
    for share in shares or known:
        if share not in known and (lr is None or head_lr is None):
            raise UserError(
                f"evaluate.finetune: preset {preset} has no rates for {share}% of the labels "
                f"(it has: {', '.join(f'{n}%' for n in known)}); set `lr` and `head_lr`"
            )
        trunk, head = known.get(share, (0.0, 0.0))
        rates[share] = trunk if lr is None else lr, head if head_lr is None else head_lr
    return rates


def rows_of_share(
    manifest: Manifest, share: int, seed: int, listed: PublishedList | None = None
) -> Tensor:
    """The training rows (n,) int64 of a share of the labels, sorted.

    Without a list, the seed chooses equally many images of each class: at least one, and all of a
    smaller class. A smaller share is part of a larger one; 100 percent is every image. Raises
    UserError for fewer than two classes, or a list that does not fit.
    """
    ids = labelled_ids(manifest, "train")
    if listed is not None:
        ids = _listed(manifest, ids, listed)
    elif share < 100:
        labels = manifest.labels[ids]
        each = max(1, round(share / 100 * len(ids) / max(1, len(labels.unique()))))
        ids = balanced(ids, labels, each, Draws.of(seed, 0, ids).uniform("labels", 1)[:, 0])
    if len(manifest.labels[ids].unique()) < 2:
        raise UserError(
            f"evaluate.finetune: {len(ids)} labelled training images of fewer than two classes "
            "cannot teach a classifier"
        )
    return ids


def _listed(manifest: Manifest, ids: Tensor, listed: PublishedList) -> Tensor:
    """The rows of a published list. Its lines are paths or file names of training images."""
    where = f"evaluate.finetune.lists: {listed.path}"
    try:
        digest, lines = file_digest(listed.path), read_text(listed.path).splitlines()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from None
    if digest != listed.sha256:
        raise UserError(f"{where} has sha256 {digest}, not {listed.sha256}")
    rows: dict[str, list[int]] = {}
    for row in ids.tolist():
        path = str(manifest.paths[row])
        for name in {path, path.rpartition("/")[2]}:
            rows.setdefault(name, []).append(row)
    names = [line.strip() for line in lines if line.strip()]
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise UserError(
            f"{where}: {len(unknown)} of its {len(names)} names are no labelled training image, "
            f"such as {unknown[0]}"
        )
    ambiguous = [name for name in names if len(rows[name]) > 1]
    if ambiguous:
        raise UserError(f"{where}: {ambiguous[0]} is the name of several images; list their paths")
    return torch.tensor(sorted({rows[name][0] for name in names}), dtype=torch.int64)


def _check(params: Params, runs: Sequence[str], options: Mapping[str, Any]) -> None:
    rates_of_shares(*(options[name] for name in ("preset", "shares", "lr", "head_lr")))


EVALUATION = Evaluation(run, label="fine-tuning", check=_check)
