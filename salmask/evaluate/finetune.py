"""Fine-tuning: the encoder and a classifier on it learn from a share of the labels.

20 epochs of SGD with a rate for the trunk and one for the head, x0.2 at 12 and 16 (Caron et al.
2020), batch norm in training mode, crop + flip; the encoder filters its input as it always does.
The last epoch is the result.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass as plain
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.devices import autocast
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate import classifier
from salmask.evaluate.classifier import Course, History
from salmask.evaluate.features import (
    extract,
    labelled_splits,
    top,
    width,
)
from salmask.evaluate.subsets import balanced, labelled_ids
from salmask.job import Job
from salmask.params.values import STRICT
from salmask.provenance import file_digest
from salmask.randomness import Draws

Percent = Annotated[int, Field(ge=1, le=100)]
# Percent of the labels -> the rates of trunk and head at batch 256.
PRESETS: dict[str, dict[int, tuple[float, float]]] = {
    "mscn": {1: (0.002, 0.5)},
    "mixmask": {1: (0.001, 1.0), 10: (0.001, 0.1), 100: (0.001, 0.01)},
}


@dataclass(frozen=True, config=STRICT)
class Published:
    """A list of training images, one name per line, and its sha256: DVC does not watch the file,
    so that it must not change unnoticed."""

    path: Path
    sha256: str


@plain(frozen=True)
class Plan:
    """How one share of the labels is learned. lr, head_lr: at batch 256."""

    share: int
    lr: float
    head_lr: float


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    preset: Literal["mscn", "mixmask"] = "mixmask",
    shares: tuple[Percent, ...] | None = None,
    lists: Mapping[Percent, Published] | None = None,
    lr: float | None = None,
    head_lr: float | None = None,
    batch: PositiveInt = 256,
    epochs: PositiveInt = 20,
    milestones: tuple[int, ...] = (12, 16),
    gamma: float = 0.2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    images: Literal["stream", "resident"] = "stream",
) -> dict[str, float]:
    """Percent correct after the last epoch: `finetune1_top1`, `finetune1_top5` where there are more
    than 5 classes; the number is the percentage of labels, other splits go before it.

    shares: of the labels, in percent; null for all that the preset has rates for. lists: published
    lists in the place of our subsets, by share. lr, head_lr: of trunk and head at batch 256, scaled
    with the batch; null for the preset's. Writes history.csv. Raises
    UserError.
    """
    history: History = []
    classifier.write_history(job, history)
    if not manifest.labelled():
        return {}
    metrics = {}
    for plan in plans(preset, shares, lr, head_lr):
        ids = chosen(manifest, plan.share, job.seed, (lists or {}).get(plan.share))
        course = Course(
            min(batch, len(ids)), epochs, "step", milestones, gamma=gamma, images=images
        )
        torch.manual_seed(job.seed)
        encoder = copy.deepcopy(encoders["trained"]).requires_grad_(True)
        head = classifier.head(width(encoder, job), len(manifest.classes), job.device)
        scale = course.batch / 256
        optimizer = torch.optim.SGD(
            [
                {"params": list(encoder.parameters()), "lr": plan.lr * scale},
                {"params": list(head.parameters()), "lr": plan.head_lr * scale},
            ],
            momentum=momentum,
            weight_decay=weight_decay,
        )
        model, name = nn.Sequential(encoder, head).train(), f"finetune{plan.share}"

        def loss(views: Tensor, labels: Tensor, model: nn.Module = model) -> Tensor:
            with autocast(job.device, precision):
                logits = model(views)
            return F.cross_entropy(logits.float(), labels)

        side = encoder.spec.size
        history += classifier.train(model, loss, optimizer, manifest, ids, side, course, job, name)
        classifier.write_history(job, history)
        model.eval()
        for split, prefix in labelled_splits(manifest).items():
            held = extract(encoder, manifest, split, job)
            with torch.inference_mode():
                logits = head(held.features)
            metrics[f"{prefix}{name}_top1"] = top(logits, held.labels, 1)
            if len(manifest.classes) > 5:
                metrics[f"{prefix}{name}_top5"] = top(logits, held.labels, 5)
    return metrics


def plans(
    preset: str, shares: tuple[int, ...] | None, lr: float | None, head_lr: float | None
) -> list[Plan]:
    """What to train. Raises UserError for a share of which neither preset nor options say how."""
    known = PRESETS[preset]
    made = []
    for share in shares or tuple(known):
        if share not in known and (lr is None or head_lr is None):
            raise UserError(
                f"evaluate.finetune: preset {preset} has no rates for {share}% of the labels "
                f"(it has: {', '.join(f'{n}%' for n in known)}); set `lr` and `head_lr`"
            )
        trunk_rate, head_rate = known.get(share, (0.0, 0.0))
        made.append(
            Plan(
                share,
                trunk_rate if lr is None else lr,
                head_rate if head_lr is None else head_lr,
            )
        )
    return made


def chosen(manifest: Manifest, share: int, seed: int, listed: Published | None = None) -> Tensor:
    """The training rows (n,) whose labels may be used, sorted. Raises UserError.

    Without a list: as many of every class (all of it, where it has fewer; at least one), chosen by
    the seed, so that a smaller share is part of a larger one; 100 percent is everything.
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


def _listed(manifest: Manifest, ids: Tensor, listed: Published) -> Tensor:
    """The rows that a published list names, by their paths or, as those do, by file names alone."""
    where = f"evaluate.finetune.lists: {listed.path}"
    try:
        digest, lines = file_digest(listed.path), listed.path.read_text().splitlines()
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
    lost = [name for name in names if name not in rows]
    if lost:
        raise UserError(
            f"{where}: {len(lost)} of its {len(names)} names are no labelled training image, "
            f"such as {lost[0]}"
        )
    double = [name for name in names if len(rows[name]) > 1]
    if double:
        raise UserError(f"{where}: {double[0]} is the name of several images; list their paths")
    return torch.tensor(sorted({rows[name][0] for name in names}), dtype=torch.int64)
