"""Transfer: a linear classifier on frozen features of another data set.

L-BFGS logistic regression on features of the evaluation view. The penalty is chosen on validation
images; then training and validation images are fitted together (Kornblith et al. 2019). Large data
sets may use SGD on augmented views instead; the metrics then have other names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.devices import Precision
from salmask.distributed import rank
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate import Evaluation, classifier
from salmask.evaluate.classifier import ClassifierSchedule
from salmask.evaluate.features import (
    Labelled,
    accuracy,
    extract_rows,
    mean_per_class,
    set_precision,
)
from salmask.evaluate.logistic import best_l2, fit, predict
from salmask.evaluate.subsets import hold_out, labelled_ids
from salmask.job import Job
from salmask.params.ranges import Milestones, NonNegative, Positive, PositiveInt, PositiveRange
from salmask.params.values import STRICT

_HELD_OUT = 0.2  # share of each class that is held out if there is no validation split


@plain_dataclass(frozen=True)
class SplitRows:
    """Rows (n,) int64 of each split. The last fit uses `train` and `val` together."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True, config=STRICT)
class SgdOptions:
    """Training by SGD on augmented views.

    The defaults are those of iNaturalist 2018; Places-205 has epochs 14 and milestones [4, 8, 12].

    Args:
        lr: at batch 256, scaled with the batch.
        batch: global batch size.
        epochs: number of epochs.
        milestones: epochs, counted from 0, at whose start the rate is divided by 10.
        weight_decay: L2 penalty.
    """

    lr: Positive = 0.01
    batch: PositiveInt = 256
    epochs: PositiveInt = 84
    milestones: Milestones = (24, 48, 72)
    weight_decay: NonNegative = 5e-4


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    l2: PositiveRange = (1e-6, 1e5),
    l2_steps: PositiveInt = 45,
    iterations: PositiveInt = 500,
    sgd: Mapping[str, SgdOptions] | None = None,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Accuracy in percent on the test images of another data set.

    Args:
        encoders: `trained`.
        manifest: the images of the data set.
        job: device, seed and folders.
        l2: smallest and largest penalty.
        l2_steps: number of penalties, spaced evenly on a logarithmic scale.
        iterations: of each fit.
        sgd: options for the data sets that use SGD instead, by name.
        precision: of the encoder. `auto` is bfloat16 on CUDA and float32 elsewhere.

    Returns:
        `transfer_NAME_top1` and the mean over classes, `transfer_NAME_mean_per_class`, where NAME
        is the name under `transfer` in params.yaml; for SGD `transfer_NAME_sgd_top1` and so on.

    Raises:
        UserError: if labelled images for training or testing are missing.
    """
    set_precision(encoders, precision)
    encoder, rows, name = encoders["trained"], split_rows(manifest, job.seed), manifest.name
    if sgd and name in sgd:
        options, ids = sgd[name], torch.cat([rows.train, rows.val])
        course = ClassifierSchedule(
            min(options.batch, len(ids)), options.epochs, "step", options.milestones
        )
        (model,), _ = classifier.train_linear(
            encoder,
            manifest,
            ids,
            course,
            job,
            f"transfer-{name}",
            (options.lr,),
            momentum=0.9,
            weight_decay=options.weight_decay,
            nesterov=True,
        )
        name = f"{name}_sgd"
    else:
        train = extract_rows(encoder, manifest, rows.train, job, f"{name}, train")
        val = extract_rows(encoder, manifest, rows.val, job, f"{name}, val")
        low, high = (math.log10(bound) for bound in l2)
        grid = torch.logspace(low, high, l2_steps, dtype=torch.float64).tolist()
        model, best = by_validation(train, val, len(manifest.classes), grid, iterations)
        if rank() == 0:
            print(f"{name}: l2 {best:.2g} is best on {len(rows.val)} validation images", flush=True)
    test = extract_rows(encoder, manifest, rows.test, job, f"{name}, test")
    predicted = predict(model, test)
    return {
        f"transfer_{name}_top1": accuracy(predicted, test.labels),
        f"transfer_{name}_mean_per_class": mean_per_class(predicted, test.labels),
    }


def split_rows(manifest: Manifest, seed: int) -> SplitRows:
    """The rows of each split. Without a split `test`, `val` is for testing; without a validation
    split, a fifth of each class of the training images is held out. Raises UserError if labelled
    images for training or testing are missing."""
    rows = {split: labelled_ids(manifest, split) for split in ("train", "val", "test")}
    rows = {split: ids for split, ids in rows.items() if len(ids)}
    if "train" not in rows or len(rows) < 2 or not manifest.labelled():
        raise UserError(
            f"transfer.{manifest.name}: labelled images of several classes are needed to learn "
            f"from and to test on; there are: {', '.join(rows) or 'none'}"
        )
    train, test = rows["train"], rows.get("test", rows.get("val"))
    assert test is not None
    if len(rows) == 3:
        return SplitRows(train, rows["val"], test)
    val, rest = hold_out(manifest, train, _HELD_OUT, seed)
    if not len(val):
        raise UserError(
            f"transfer.{manifest.name}: no class has two training images, so that none can be held "
            "out for validation"
        )
    return SplitRows(rest, val, test)


def by_validation(
    train: Labelled, val: Labelled, classes: int, grid: list[float], iterations: int
) -> tuple[nn.Linear, float]:
    """Chooses the l2 of `grid` with the best accuracy on `val` after a fit on `train`, and fits
    both with it. Of equally good ones, the largest is chosen. Returns the classifier and the l2."""
    chosen, start = best_l2(train, val, classes, grid, iterations, _is_right)
    return fit([train, val], classes, chosen, iterations, start=start), chosen


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels).float()


EVALUATION = Evaluation(run, label="transfer")
