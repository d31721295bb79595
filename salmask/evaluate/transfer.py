"""Frozen features on another dataset: how far they carry.

L-BFGS logistic regression on features of the evaluation view, the penalty chosen on validation
images, then fitted again with those (Kornblith et al. 2019). Large datasets go by SGD on augmented
views instead, under metrics of their own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.distributed import rank
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate import classifier
from salmask.evaluate.classifier import Course
from salmask.evaluate.features import (
    Labelled,
    accuracy,
    extract_rows,
    mean_per_class,
    top,
    width,
)
from salmask.evaluate.logistic import best_l2, fit
from salmask.evaluate.subsets import hold_out, labelled_ids
from salmask.job import Job
from salmask.params.values import STRICT

_HELD_OUT = 0.2  # of each class of the training images, where nobody names a validation split


@plain(frozen=True)
class Parts:
    """Which rows (n,) do what: train and val together are what the last fit learns from."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True, config=STRICT)
class Sgd:
    """Training on augmented views; the defaults are iNaturalist 2018's, Places-205 has epochs 14
    and milestones [4, 8, 12]. lr: at batch 256."""

    lr: float = 0.01
    batch: PositiveInt = 256
    epochs: PositiveInt = 84
    milestones: tuple[int, ...] = (24, 48, 72)
    weight_decay: float = 5e-4


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    l2: tuple[PositiveFloat, PositiveFloat] = (1e-6, 1e5),
    l2_steps: PositiveInt = 45,
    iterations: PositiveInt = 500,
    sgd: Mapping[str, Sgd] | None = None,
) -> dict[str, float]:
    """Percent correct on the test images of another dataset, NAME as params.yaml calls it:
    `transfer_NAME_top1`, and the mean over classes, `transfer_NAME_mean_per_class`.

    l2, l2_steps: from where to where, and how many, log-spaced; iterations: of each fit. sgd: the
    datasets that learn by SGD instead, whose metrics are `transfer_NAME_sgd_*`. Raises UserError.
    """
    encoder, parts, name = encoders["trained"], roles(manifest, job.seed), manifest.name
    if sgd and name in sgd:
        model: nn.Module = by_sgd(encoder, manifest, torch.cat([parts.train, parts.val]), job, sgd)
        name = f"{name}_sgd"
    else:
        train = extract_rows(encoder, manifest, parts.train, job, f"{name}, train")
        val = extract_rows(encoder, manifest, parts.val, job, f"{name}, val")
        low, high = (math.log10(bound) for bound in l2)
        grid = torch.logspace(low, high, l2_steps, dtype=torch.float64).tolist()
        model, best = by_validation(train, val, len(manifest.classes), grid, iterations)
        if rank() == 0:
            told = f"{name}: l2 {best:.2g} is best on {len(parts.val)} validation images"
            print(told, flush=True)
    test = extract_rows(encoder, manifest, parts.test, job, f"{name}, test")
    with torch.inference_mode():
        found = model(test.features).argmax(dim=1)
    return {
        f"transfer_{name}_top1": accuracy(found, test.labels),
        f"transfer_{name}_mean_per_class": mean_per_class(found, test.labels),
    }


def roles(manifest: Manifest, seed: int) -> Parts:
    """What each image is for. The last of `val` and `test` that there is is tested on; a missing
    validation split is a fifth of each class of the training images. Raises UserError."""
    there = {split: labelled_ids(manifest, split) for split in ("train", "val", "test")}
    there = {split: ids for split, ids in there.items() if len(ids)}
    if "train" not in there or len(there) < 2 or not manifest.labelled():
        raise UserError(
            f"transfer.{manifest.name}: labelled images of several classes are needed to learn "
            f"from and to test on; there are: {', '.join(there) or 'none'}"
        )
    train, test = there["train"], there.get("test", there.get("val"))
    assert test is not None
    if len(there) == 3:
        return Parts(train, there["val"], test)
    val, rest = hold_out(manifest, train, _HELD_OUT, seed)
    if not len(val):
        raise UserError(f"transfer.{manifest.name}: one training image a class leaves none to hold")
    return Parts(rest, val, test)


def by_validation(
    train: Labelled, val: Labelled, classes: int, grid: list[float], iterations: int
) -> tuple[nn.Linear, float]:
    """The classifier fitted on all images with the l2 of `grid` that is best on `val` when fitted
    on `train` alone, and that l2; of equally good ones the largest."""
    chosen, start = best_l2(
        train, val, classes, grid, iterations, lambda logits, labels: top(logits, labels, 1)
    )
    both = Labelled(
        torch.cat([train.features, val.features]), torch.cat([train.labels, val.labels])
    )
    return fit(both, classes, chosen, iterations, start=start), chosen


def by_sgd(
    encoder: Encoder, manifest: Manifest, ids: Tensor, job: Job, sgd: Mapping[str, Sgd]
) -> nn.Linear:
    """A classifier trained on augmented views of the rows `ids`."""
    asked = sgd[manifest.name]
    course = Course(min(asked.batch, len(ids)), asked.epochs, "step", asked.milestones)
    torch.manual_seed(job.seed)
    model = classifier.head(width(encoder, job), len(manifest.classes), job.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        asked.lr * course.batch / 256,
        momentum=0.9,
        weight_decay=asked.weight_decay,
        nesterov=True,
    )

    def loss(views: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            found = encoder(views)
        return F.cross_entropy(model(found), labels)

    side, name = encoder.spec.size, f"transfer-{manifest.name}"
    classifier.train(model, loss, optimizer, manifest, ids, side, course, job, name)
    return model
