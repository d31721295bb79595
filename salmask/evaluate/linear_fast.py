"""A linear classifier on features that are computed once: minutes instead of hours.

This is not the linear protocol of the papers: it fits by L-BFGS with an L2 penalty instead of SGD.
Its metrics are `linear_fast_*`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.devices import Precision
from salmask.encoders.on_disk import Encoder
from salmask.evaluate import Evaluation
from salmask.evaluate.features import (
    Labelled,
    accuracy,
    extract,
    extract_rows,
    extract_views,
    labelled_splits,
    set_precision,
)
from salmask.evaluate.logistic import best_l2, fit, predict
from salmask.evaluate.subsets import hold_out, labelled_ids
from salmask.job import Job
from salmask.params.ranges import NonNegativeInt, Positive, PositiveInt, Several

L2 = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_HELD_OUT = 0.1  # share of each class on which the penalty is chosen


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    l2: Positive | Several[Positive] = L2,
    views: NonNegativeInt = 0,
    iterations: PositiveInt = 300,
    images: Literal["stream", "resident"] = "stream",
    precision: Precision = "float32",
) -> dict[str, float]:
    """Top-1 accuracy in percent of a classifier on standardised features.

    Args:
        encoders: `trained`.
        manifest: the images.
        job: device, seed and folders.
        l2: penalty. Of several, the one with the lowest cross entropy on a tenth of the training
            images is chosen, since accuracies on few images are too coarse; then all are fitted.
            With one image per class none can be held out, and the largest penalty is used.
        views: number of crops and flips per training image, as in `linear`; 0 for the centre crop.
        iterations: of L-BFGS.
        images: `stream` or `resident`, for `views`.
        precision: of the encoder. `auto` is bfloat16 on CUDA and float32 elsewhere.

    Returns:
        `linear_fast_top1`, or `linear_fast_<n>views_top1` with n views; on splits other than `val`
        with the prefix `<split>_`. Nothing without labels.
    """
    set_precision(encoders, precision)
    if not manifest.labelled():
        return {}
    encoder, ids = encoders["trained"], labelled_ids(manifest, "train")
    labels = manifest.labels[ids].to(job.device)
    if views:
        each = extract_views(encoder, manifest, ids, views, images, job, "train")
        features, labels = each.flatten(0, 1), labels.repeat_interleave(views)
    else:
        features = extract_rows(encoder, manifest, ids, job, "train").features
    mean, deviation = features.mean(0), features.std(0, correction=min(1, len(features) - 1)) + 1e-6

    def standardised(rows: Labelled) -> Labelled:
        """The same rows, whose features are changed in place: no second copy is in memory."""
        rows.features.sub_(mean).div_(deviation)
        return rows

    train = standardised(Labelled(features, labels))
    classes, start = len(manifest.classes), None
    grid = l2 if isinstance(l2, tuple) else (l2,)
    held_out, _ = hold_out(manifest, ids, _HELD_OUT, job.seed)
    if not len(held_out):
        grid = (max(grid),)
    if len(grid) > 1:
        is_held = torch.isin(ids, held_out).repeat_interleave(views or 1)
        if views:  # the penalty is chosen on centre crops, as those of the validation images
            held = standardised(extract_rows(encoder, manifest, held_out, job, "held-out images"))
        else:
            held = train.pick(torch.nonzero(is_held)[:, 0])
        rest = train.pick(torch.nonzero(~is_held)[:, 0])
        chosen, start = best_l2(rest, held, classes, grid, iterations, _minus_cross_entropy)
        grid = (chosen,)
    model = fit([train], classes, grid[0], iterations, start=start)
    metrics = {}
    name = f"linear_fast_{views}views" if views else "linear_fast"
    for split, prefix in labelled_splits(manifest).items():
        held = standardised(extract(encoder, manifest, split, job))
        metrics[f"{prefix}{name}_top1"] = accuracy(predict(model, held), held.labels)
    return metrics


def _minus_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(logits, labels, reduction="none")


EVALUATION = Evaluation(run, label="fast linear", every_run=True)
