"""A linear classifier on cached features: minutes instead of hours, under a name of its own.

Not the papers' linear protocol (no augmentation, no SGD): its metrics are `linear_fast_*`.
"""

import torch
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.encoder_file import Encoder
from salmask.evaluate.features import Labelled, accuracy, extract, validation_splits
from salmask.evaluate.logistic import fit
from salmask.job import Job


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    l2: float = 1e-4,
    iterations: int = 300,
) -> dict[str, float]:
    """Top-1 in percent on standardised features: `linear_fast_top1`, `<split>_linear_fast_top1`."""
    if not manifest.labelled():
        return {}
    train = extract(encoders["trained"], manifest, "train", job)
    mean, deviation = train.features.mean(0), train.features.std(0) + 1e-6

    def standard(features: Tensor) -> Tensor:
        return (features - mean) / deviation

    clean = Labelled(standard(train.features), train.labels)
    model = fit(clean, len(manifest.classes), l2, iterations)
    metrics = {}
    for split, prefix in validation_splits(manifest).items():
        held = extract(encoders["trained"], manifest, split, job)
        with torch.inference_mode():
            found = model(standard(held.features)).argmax(dim=1)
        metrics[f"{prefix}linear_fast_top1"] = accuracy(found, held.labels)
    return metrics
