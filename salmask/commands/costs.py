"""What a suite needs: images, and an estimate of GPU hours and disk, before anything is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from salmask import frameworks
from salmask.commands import suites
from salmask.encoders.backbones import build_encoder
from salmask.errors import UserError
from salmask.masks import MASKS
from salmask.masks.options import options_of
from salmask.params.encoder import EncoderConfig
from salmask.params.names import chosen_evaluations, run_names
from salmask.params.run import RunConfig, read_run
from salmask.params.saliency import SaliencyConfig
from salmask.params.values import Choice
from salmask.params.yaml_file import Params
from salmask.report.text import text_table

# The one assumption about speed: what a GPU really computes in training, of every kind of
# network. It is about what 2,500 images/s are for a ResNet-50 at 224 px, a figure often published
# for an A100 with mixed precision. A guess, not measured here; small networks and views reach less.
_RATE = 60e12  # floating-point operations a second
_ASSUMED = (
    "GPU hours: pretraining, linear evaluation and fine-tuning at 60 TFLOP/s, which is a guess at "
    "one A100 (2,500 images/s of ResNet-50 at 224 px); detection and transfer come on top. Disk: "
    "what the runs leave, without the images."
)
_IMAGES = {  # for training, as the data sets are published
    "imagenet": 1_281_167,
    "imagenet100": 126_689,
    "tinyimagenet": 100_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 105_000,
    "imagenette": 9_469,
    "demo": 1_300,
}
_FORWARD = 1 / 3  # of a pass forward and backward
_FINETUNED_EPOCHS, _LINEAR_EPOCHS = 20, 100
_SCALAR = 4  # bytes


@dataclass(frozen=True)
class Need:
    """data: name -> whether its root is there. hours: of one GPU, detection apart; None where the
    number of images is not known. disk: bytes, data apart; None likewise."""

    data: dict[str, bool]
    runs: int
    hours: float | None
    disk: float | None


def need(params: Params, root: Path) -> Need:
    """What a suite needs. root: the project's folder, to which data roots are relative."""
    choices = {"data": params.choice("data")}
    choices |= {name: params.choice(f"transfer.{name}") for name in params.raw("transfer")}
    data = {c.name: _is_there(c, root) for c in choices.values()}
    data |= {
        told.get("name", name): (root / str(told["root"])).exists()
        for name, told in params.values.get("detect", {}).items()
    }
    runs = [read_run(params, name) for name in run_names(params)]
    images = _images(choices["data"])
    if images is None:
        return Need(data, len(runs), None, None)
    work = sum(_work(run, params, images) for run in runs)
    levels = params.section("saliency", SaliencyConfig).levels
    work += images * sum(_operations(EncoderConfig(), level) for level in levels)
    kept = sum((4 + 8) * _SCALAR * _weights(run.encoder) for run in runs)
    maps = images * sum((level // 32) ** 2 for level in levels) * 2
    return Need(data, len(runs), work / _RATE / 3600, kept + 2 * maps)


def listing(root: Path) -> str:
    """A project's suites and what each needs, for a terminal; what is wrong with those that cannot
    be read."""
    header = ["suite", "runs", "GPU hours", "disk, GB", "images"]
    lines, wrong = [], []
    for name in suites.names(root):
        try:
            told = need(suites.load(root, name), root)
        except UserError as error:
            wrong.append(f"{name} does not fit: {error}")
            continue
        numbers = [_number(told.hours), _number(told.disk and told.disk / 1e9)]
        images = [n if there else f"{n} (not there)" for n, there in told.data.items()]
        lines.append([name, str(told.runs), *numbers, ", ".join(images)])
    return "\n".join([text_table(header, lines), _ASSUMED, *wrong])


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _is_there(choice: Choice, root: Path) -> bool:
    return choice.name == "demo" or (root / str(choice.options.get("root", ""))).exists()


def _images(choice: Choice) -> int | None:
    drawn = choice.options.get("images")
    return int(drawn["train"]) if drawn else _IMAGES.get(choice.name)


def _work(run: RunConfig, params: Params, images: int) -> float:
    """Operations of a run's training, its linear evaluation and its fine-tuning."""
    one = _operations(run.encoder, run.view.size)
    trained = 3 * one * images * run.train.epochs * _passes(run)
    done = [*params.section("evaluate.protocols", list[str]), *chosen_evaluations(params)[run.name]]
    evaluated = 0.0
    if "linear" in done:
        epochs = params.raw("evaluate.linear").get("epochs", _LINEAR_EPOCHS)
        evaluated += one * images * epochs
    if "finetune" in done:
        asked = params.raw("evaluate.finetune")
        shares: Sequence[float] = asked.get("shares", (1, 10, 100))
        epochs = asked.get("epochs", _FINETUNED_EPOCHS)
        evaluated += 3 * one * images * epochs * sum(shares) / 100
    return trained + evaluated


def _passes(run: RunConfig) -> float:
    """Of one image and step, in passes forward and backward."""
    wiring = frameworks.wiring_of(run.framework, run.train.batch)
    mask, options = MASKS[run.mask.name], options_of(run.mask)
    views = 1.0 if wiring.roles == "query" else 2.0
    targets = views * _FORWARD if wiring.target_encoder else 0.0
    per_negative = _FORWARD if wiring.target_encoder else 1.0
    negatives = mask.hard_negatives(options) * per_negative
    return views + targets + negatives + mask.extra_passes(options)


@cache
def _operations(encoder: EncoderConfig, size: int) -> float:
    """Of one image passing forward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        build_encoder(encoder).eval()(torch.empty(1, 3, size, size))
    return float(counter.get_total_flops())


@cache
def _weights(encoder: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_encoder(encoder).parameters())
