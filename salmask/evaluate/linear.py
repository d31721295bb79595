"""The linear protocol: a classifier on a frozen encoder, trained on augmented views.

The encoder is in eval mode, the views are crop + flip; the last epoch is the result.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.encoders.on_disk import Encoder
from salmask.evaluate.classifier import Course, History, head, train, write_history
from salmask.evaluate.features import (
    accuracy,
    extract,
    extract_rows,
    labelled_splits,
    width,
)
from salmask.evaluate.subsets import hold_out, labelled_ids
from salmask.job import Job

Preset = Literal["moco", "mscn", "simclr", "byol"]
# lr: at batch 256. Several rates: the best on images held out of the training split is taken.
PRESETS: dict[str, dict[str, Any]] = {
    "moco": {"lr": 30.0, "batch": 256, "epochs": 100, "milestones": (60, 80)},  # He et al. 2020
    "mscn": {"lr": 1.0, "batch": 256, "epochs": 100, "schedule": "cosine", "weight_decay": 1e-6},
    "simclr": {"lr": 0.1, "batch": 4096, "epochs": 90, "schedule": "cosine", "nesterov": True},
    "byol": {
        "lr": (0.4, 0.3, 0.2, 0.1, 0.05),
        "batch": 1024,
        "epochs": 80,
        "schedule": "cosine",
        "nesterov": True,
    },
}
_COMMON = {
    "schedule": "step",
    "milestones": (),
    "momentum": 0.9,
    "weight_decay": 0.0,
    "nesterov": False,
}
_HELD_OUT = 0.1  # of each class: on these a rate is chosen


def settings(preset: Preset, **given: Any) -> dict[str, Any]:
    """What a preset says, under what was given: anything but None."""
    return _COMMON | PRESETS[preset] | {k: v for k, v in given.items() if v is not None}


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    preset: Preset = "moco",
    lr: float | tuple[float, ...] | None = None,
    batch: int | None = None,
    epochs: int | None = None,
    schedule: Literal["step", "cosine"] | None = None,
    milestones: tuple[int, ...] | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    nesterov: bool | None = None,
    images: Literal["stream", "resident"] = "stream",
) -> dict[str, float]:
    """Top-1 in percent after the last epoch: `linear_top1`, `<split>_linear_top1`; under another
    preset than `moco`, `linear_<preset>_top1`.

    What is None is the preset's. lr: at batch 256, scaled with the batch; of several, the one that
    does best on a tenth of the training images, held out, then trains on all. Writes history.csv.
    """
    history: History = []
    write_history(job, history)
    if not manifest.labelled():
        return {}
    encoder, ids = encoders["trained"], labelled_ids(manifest, "train")
    asked = settings(
        preset,
        lr=lr,
        batch=batch,
        epochs=epochs,
        schedule=schedule,
        milestones=milestones,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )
    rates = asked["lr"] if isinstance(asked["lr"], tuple) else (asked["lr"],)
    features = width(encoder, job)

    def trained(rows: Tensor, each: tuple[float, ...], name: str) -> nn.ModuleList:
        """A classifier for each rate, side by side on the same views."""
        course = Course(
            min(asked["batch"], len(rows)),
            asked["epochs"],
            asked["schedule"],
            asked["milestones"],
            images=images,
        )
        torch.manual_seed(job.seed)
        first = head(features, len(manifest.classes), job.device)
        models = nn.ModuleList(head(features, len(manifest.classes), job.device) for _ in each)
        for model in models:
            model.load_state_dict(first.state_dict())
        optimizer = torch.optim.SGD(
            [
                {"params": list(model.parameters()), "lr": rate * course.batch / 256}
                for model, rate in zip(models, each, strict=True)
            ],
            momentum=asked["momentum"],
            weight_decay=asked["weight_decay"],
            nesterov=asked["nesterov"],
        )

        def loss(views: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                found = encoder(views)
            return torch.stack([F.cross_entropy(model(found), labels) for model in models]).sum()

        side = encoder.spec.size
        several = len(each) > 1  # of which some may be too high
        history.extend(
            train(models, loss, optimizer, manifest, rows, side, course, job, name, several)
        )
        write_history(job, history)
        return models

    if len(rates) > 1:
        held_out, rest = hold_out(manifest, ids, _HELD_OUT, job.seed)
        models = trained(rest, rates, "linear-rates")
        held = extract_rows(encoder, manifest, held_out, job, "held-out images")
        with torch.inference_mode():
            scores = [accuracy(m(held.features).argmax(dim=1), held.labels) for m in models]
        rates = (rates[scores.index(max(scores))],)
    (model,) = trained(ids, rates, "linear")
    metrics = {}
    name = "linear" if preset == "moco" else f"linear_{preset}"
    for split, prefix in labelled_splits(manifest).items():
        held = extract(encoder, manifest, split, job)
        with torch.inference_mode():
            found = model(held.features).argmax(dim=1)
        metrics[f"{prefix}{name}_top1"] = accuracy(found, held.labels)
    return metrics
