"""A linear classifier on cached features: minutes instead of hours, under a name of its own.

Not the papers' linear protocol (no SGD, a penalty in place of a rate): its metrics are
`linear_fast_*`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.encoders.on_disk import Encoder
from salmask.evaluate.features import (
    Labelled,
    accuracy,
    extract,
    extract_rows,
    extract_views,
    labelled_splits,
)
from salmask.evaluate.logistic import best_l2, fit
from salmask.evaluate.subsets import hold_out, labelled_ids
from salmask.job import Job

L2 = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_HELD_OUT = 0.1  # of each class: on these a penalty is chosen


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    l2: PositiveFloat | tuple[PositiveFloat, ...] = L2,
    views: NonNegativeInt = 0,
    iterations: int = 300,
    images: Literal["stream", "resident"] = "stream",
) -> dict[str, float]:
    """Top-1 in percent on standardised features: `linear_fast_top1`, `<split>_linear_fast_top1`.

    l2: of several, the one under which a tenth of the training images, held out, are likeliest to
    have their labels, then fits all: accuracies of few images are too coarse to choose by. views:
    crops and flips of each training image, as `linear` has them, to learn from; 0 for its centre
    crop. With n views the metrics are `linear_fast_<n>views_top1`. images: where views come from.
    """
    if not manifest.labelled():
        return {}
    encoder, ids = encoders["trained"], labelled_ids(manifest, "train")
    if views:
        seen = extract_views(encoder, manifest, ids, views, images, job, "train")
    else:
        seen = extract_rows(encoder, manifest, ids, job, "train").features[:, None]
    mean = seen.flatten(0, 1).mean(0)
    deviation = seen.flatten(0, 1).std(0) + 1e-6

    def standard(features: Tensor) -> Tensor:
        return (features - mean) / deviation

    def learned_from(rows: Tensor) -> Labelled:
        """All views of some of the training images `ids`: (n,) bool."""
        labels = manifest.labels[ids[rows]].to(job.device)
        return Labelled(standard(seen[rows].flatten(0, 1)), labels.repeat_interleave(seen.shape[1]))

    classes, start = len(manifest.classes), None
    everything = torch.ones(len(ids), dtype=torch.bool)
    grid = l2 if isinstance(l2, tuple) else (l2,)
    if len(grid) > 1:
        held_out, _ = hold_out(manifest, ids, _HELD_OUT, job.seed)
        held = extract_rows(encoder, manifest, held_out, job, "held-out images")
        held = Labelled(standard(held.features), held.labels)
        rest = learned_from(~torch.isin(ids, held_out))
        chosen, start = best_l2(rest, held, classes, grid, iterations, _likelihood)
        grid = (chosen,)
    model = fit(learned_from(everything), classes, grid[0], iterations, start=start)
    metrics = {}
    name = f"linear_fast_{views}views" if views else "linear_fast"
    for split, prefix in labelled_splits(manifest).items():
        held = extract(encoder, manifest, split, job)
        with torch.inference_mode():
            found = model(standard(held.features)).argmax(dim=1)
        metrics[f"{prefix}{name}_top1"] = accuracy(found, held.labels)
    return metrics


def _likelihood(logits: Tensor, labels: Tensor) -> float:
    return -F.cross_entropy(logits, labels).item()
