"""A linear classifier on cached features: minutes instead of hours, under a name of its own.

Not the papers' linear protocol (no augmentation, no SGD): its metrics are `linear_fast_*`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.encoder_file import Encoder
from salmask.evaluate.features import Labelled, accuracy, extract, validation_splits
from salmask.job import Job


def fit(train: Labelled, classes: int, l2: float, iterations: int) -> nn.Linear:
    """Multinomial logistic regression by L-BFGS: mean cross entropy + l2/2 * |W|^2.

    train: features (n,D), labels (n,) in [0, classes). The bias is not penalised. The problem is
    convex, so the start does not matter: zeros.
    """
    model = nn.Linear(train.features.shape[1], classes).to(train.features.device)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(train.features), train.labels)
        loss = loss + 0.5 * l2 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


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

    with torch.inference_mode(False), torch.enable_grad():
        clean = Labelled(standard(train.features).clone(), train.labels.clone())
        model = fit(clean, len(manifest.classes), l2, iterations)
    metrics = {}
    for split, prefix in validation_splits(manifest).items():
        held = extract(encoders["trained"], manifest, split, job)
        with torch.inference_mode():
            found = model(standard(held.features)).argmax(dim=1)
        metrics[f"{prefix}linear_fast_top1"] = accuracy(found, held.labels)
    return metrics
