"""The linear protocol: a classifier on a frozen encoder, trained by SGD on augmented views.

The encoder is in eval mode. Views are crops and flips. The last epoch is the result.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from salmask.data.manifest import Manifest
from salmask.devices import Precision
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate import Evaluation
from salmask.evaluate.classifier import (
    ClassifierSchedule,
    History,
    train_linear,
    write_history,
)
from salmask.evaluate.features import (
    accuracy,
    extract,
    extract_rows,
    labelled_splits,
    set_precision,
)
from salmask.evaluate.logistic import predict
from salmask.evaluate.subsets import hold_out, labelled_ids
from salmask.job import Job
from salmask.params.ranges import Milestones, Momentum, NonNegative, Positive, PositiveInt, Several
from salmask.params.yaml_file import Params

Preset = Literal["moco", "mscn", "simclr", "byol"]
# lr: at batch 256. Of several rates, the best on held-out training images is chosen.
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
_HELD_OUT = 0.1  # share of each class on which the rate is chosen


def settings(preset: Preset, **given: Any) -> dict[str, Any]:
    """The options of a preset, replaced by the given ones that are not None."""
    return _COMMON | PRESETS[preset] | {k: v for k, v in given.items() if v is not None}


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    preset: Preset = "moco",
    lr: Positive | Several[Positive] | None = None,
    batch: PositiveInt | None = None,
    epochs: PositiveInt | None = None,
    schedule: Literal["step", "cosine"] | None = None,
    milestones: Milestones | None = None,
    momentum: Momentum | None = None,
    weight_decay: NonNegative | None = None,
    nesterov: bool | None = None,
    images: Literal["auto", "stream", "resident"] = "auto",
    precision: Precision = "float32",
) -> dict[str, float]:
    """Top-1 accuracy in percent after the last epoch. Writes history.csv.

    Args:
        encoders: `trained`.
        manifest: the images.
        job: device, seed and folders.
        preset: a published recipe, for all options that are None.
        lr: at batch 256, scaled with the batch. Of several, the best on a tenth of the training
            images is chosen; then a classifier is trained on all images. With one image per class
            none can be held out, and the first rate is used.
        batch: global batch size.
        epochs: number of epochs.
        schedule: see `ClassifierSchedule`.
        milestones: see `ClassifierSchedule`.
        momentum: of SGD.
        weight_decay: L2 penalty.
        nesterov: whether the momentum is Nesterov's.
        images: as in `train`.
        precision: of the encoder. `auto` is bfloat16 on CUDA and float32 elsewhere.

    Returns:
        `linear_top1`, or `linear_<preset>_top1` for presets other than `moco`; on splits other than
        `val` with the prefix `<split>_`. Nothing without labels.
    """
    set_precision(encoders, precision)
    history: History = []
    write_history(job, history)
    if not manifest.labelled():
        return {}
    encoder, ids = encoders["trained"], labelled_ids(manifest, "train")
    chosen = settings(
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
    rates = chosen["lr"] if isinstance(chosen["lr"], tuple) else (chosen["lr"],)

    def train_each(rows: Tensor, rates: tuple[float, ...], name: str) -> nn.ModuleList:
        """One classifier per rate, trained on the same views."""
        course = ClassifierSchedule(
            min(chosen["batch"], len(rows)),
            chosen["epochs"],
            chosen["schedule"],
            chosen["milestones"],
            images=images,
        )
        sgd = {key: chosen[key] for key in ("momentum", "weight_decay", "nesterov")}
        models, epochs = train_linear(encoder, manifest, rows, course, job, name, rates, **sgd)
        history.extend(epochs)
        write_history(job, history)
        return models

    held_out, rest = hold_out(manifest, ids, _HELD_OUT, job.seed)
    if not len(held_out):
        rates = rates[:1]
    if len(rates) > 1:
        models = train_each(rest, rates, "linear-rates")
        held = extract_rows(encoder, manifest, held_out, job, "held-out images")
        scores = [accuracy(predict(model, held), held.labels) for model in models]
        rates = (rates[scores.index(max(scores))],)
    (model,) = train_each(ids, rates, "linear")
    metrics = {}
    name = "linear" if preset == "moco" else f"linear_{preset}"
    for split, prefix in labelled_splits(manifest).items():
        held = extract(encoder, manifest, split, job)
        metrics[f"{prefix}{name}_top1"] = accuracy(predict(model, held), held.labels)
    return metrics


def _check(params: Params, runs: Sequence[str], options: Mapping[str, Any]) -> None:
    given = {name: value for name, value in options.items() if name in _COMMON}
    chosen = settings(options["preset"], **given)
    if chosen["nesterov"] and not chosen["momentum"]:
        raise UserError("evaluate.linear.momentum: must be above 0 for `nesterov: true`")


EVALUATION = Evaluation(run, label="linear", check=_check)
