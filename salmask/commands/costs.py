"""`salmask suite` without a name: the data that each suite needs, and an estimate of its cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salmask.commands import suites
from salmask.datasets import DATASETS
from salmask.encoders.backbones import feature_dim, operations, parameter_count
from salmask.errors import UserError
from salmask.frameworks import wiring_of
from salmask.masks import MASKS
from salmask.masks.options import input_filter, options_of
from salmask.params.encoder import EncoderConfig
from salmask.params.names import evaluation_folders, run_names
from salmask.params.run import RunConfig, read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import Choice
from salmask.params.yaml_file import Params
from salmask.report.text import text_table

# Floating-point operations per second of a GPU in training, for every kind of network. This is a
# guess, not a measurement: it corresponds to 2,500 images/s of a ResNet-50 at 224 px, a figure that
# is often published for an A100 with mixed precision. Small networks and views reach less.
_RATE = 60e12
_ASSUMPTIONS = (
    "GPU hours: pretraining, linear evaluation and fine-tuning at 60 TFLOP/s, a guess for one A100 "
    "(2,500 images/s of a ResNet-50 at 224 px), without detection and transfer. Disk: outputs of "
    "the runs and features of the training images, without the images and their packs."
)
_FORWARD = 1 / 3  # cost of a forward pass, relative to a forward and a backward pass
_FINETUNE_EPOCHS, _LINEAR_EPOCHS = 20, 100  # the defaults of these evaluations
_BYTES = 4  # of a float32


@dataclass(frozen=True)
class SuiteCost:
    """The needs of a suite.

    Args:
        data: data set -> whether its root exists.
        runs: number of runs.
        hours: of one GPU, without detection and transfer; None for an unknown number of images.
        disk: bytes without the data sets; None for an unknown number of images.
    """

    data: dict[str, bool]
    runs: int
    hours: float | None
    disk: float | None


def estimate(params: Params, root: Path) -> SuiteCost:
    """The needs of a suite.

    Args:
        params: the suite, with its grids expanded.
        root: the folder of the project, which roots of data sets are relative to.

    Raises:
        UserError: for a suite that does not fit.
    """
    source = params.choice("data")
    others = [f"transfer.{name}" for name in params.names("transfer")]
    others += [f"detect.{name}.data" for name in params.names("detect")]
    choices = [source, *(params.choice(key) for key in others)]
    data = {choice.name: _exists(choice, root) for choice in choices}
    runs = [read_run(params, name) for name in run_names(params)]
    images = _train_images(source)
    if images is None:
        return SuiteCost(data, len(runs), None, None)
    levels = params.section("saliency", SaliencyConfig).levels
    evaluations = evaluation_folders(params)
    work = sum(_run_operations(run, evaluations[run.name], params, images) for run in runs)
    work += images * sum(operations(EncoderConfig(), level) for level in levels)
    features = _features(params, runs, images)
    # Two checkpoints with the state of the optimizer, the encoder, and its copy in DVC's cache.
    encoders = sum((4 + 8) * _BYTES * parameter_count(run.encoder) for run in runs)
    maps = images * sum((level // 32) ** 2 for level in levels) * 2
    return SuiteCost(data, len(runs), work / _RATE / 3600, encoders + 2 * maps + features)


def _features(params: Params, runs: Sequence[RunConfig], images: int) -> float:
    """Bytes of the training images' features, which k-NN and `linear_fast` share.

    Untrained encoders, to which k-NN compares, are shared by runs with one architecture and input.
    """
    protocols = params.section("evaluate.protocols", list[str])
    if not {"knn", "linear_fast"} & set(protocols):
        return 0.0
    inputs = {
        (run.encoder, run.view.size, run.view.shorter, repr(input_filter(run.mask, run.view.size)))
        for run in runs
    }
    seeds = params.raw("evaluate.knn").get("random_seeds", 3) if "knn" in protocols else 0
    widths = [feature_dim(run.encoder) for run in runs]
    widths += [seeds * feature_dim(encoder) for encoder, *_ in inputs]
    return float(_BYTES * images * sum(widths))


def listing(root: Path) -> str:
    """The table of a project's suites for the terminal, with the errors of invalid suites."""
    header = ["suite", "runs", "GPU hours", "disk, GB", "data"]
    lines, errors = [], []
    for name in suites.names(root):
        try:
            cost = estimate(suites.load(root, name), root)
        except UserError as error:
            errors.append(f"{name} is not valid: {error}")
            continue
        numbers = [_number(cost.hours), _number(cost.disk and cost.disk / 1e9)]
        data = [name if exists else f"{name} (missing)" for name, exists in cost.data.items()]
        lines.append([name, str(cost.runs), *numbers, ", ".join(data)])
    return "\n".join([text_table(header, lines, left=(0, 4)), _ASSUMPTIONS, *errors])


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _exists(choice: Choice, root: Path) -> bool:
    return choice.name == "demo" or (root / str(choice.options.get("root", ""))).exists()


def _train_images(choice: Choice) -> int | None:
    drawn = choice.options.get("images")  # an option of the demo
    if drawn:
        return int(drawn["train"])
    return DATASETS[choice.name].train_images if choice.name in DATASETS else None


def _run_operations(
    run: RunConfig, evaluations: Sequence[str], params: Params, images: int
) -> float:
    """Floating-point operations of a run's training, linear evaluation and fine-tuning."""
    forward = operations(run.encoder, run.view.size)
    total = 3 * forward * images * run.train.epochs * _passes(run)
    if "linear" in evaluations:
        epochs = params.raw("evaluate.linear").get("epochs", _LINEAR_EPOCHS)
        total += forward * images * epochs
    if "finetune" in evaluations:
        options = params.raw("evaluate.finetune")
        shares: Sequence[float] = options.get("shares") or (1, 10, 100)
        epochs = options.get("epochs", _FINETUNE_EPOCHS)
        total += 3 * forward * images * epochs * sum(shares) / 100
    return total


def _passes(run: RunConfig) -> float:
    """Forward and backward passes of the encoder per image and training step."""
    wiring = wiring_of(run.framework, run.train.batch)
    mask, options = MASKS[run.mask.name], options_of(run.mask)
    views = 1.0 if wiring.roles == "query" else 2.0
    targets = views * _FORWARD if wiring.target_encoder else 0.0
    per_negative = _FORWARD if wiring.target_encoder else 1.0
    negatives = mask.hard_negatives(options) * per_negative
    return views + targets + negatives + mask.extra_passes(options)
