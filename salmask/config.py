"""params.yaml -> frozen, checked dataclasses, through one accessor that remembers what was read.

Two kinds of section: those with fixed fields are dataclasses below; those that *choose* something
by `name` (data, localizer, mask, framework) take the keyword-only arguments of the chosen function
as their schema, so that adding a mask means writing a function and nothing here (see `bind`).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
)
from pydantic.dataclasses import dataclass

from salmask.errors import UserError
from salmask.schema import STRICT as STRICT  # with what else here is asked for by its users
from salmask.schema import Choice as Choice
from salmask.schema import bind as bind
from salmask.schema import check as check

T = TypeVar("T")
Range = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]


def _shares(value: float | Range) -> float | Range:
    low, high = bounds = value if isinstance(value, tuple) else (value, value)
    if not 0 <= low <= high <= 1:
        wanted = "[low, high]" if isinstance(value, tuple) else "a share"
        shown = list(bounds) if isinstance(value, tuple) else value
        raise ValueError(f"must be {wanted} from 0 to 1, got {shown}")
    return value


ShareRange = Annotated[Range, AfterValidator(_shares)]
ShareOrRange = Annotated[float | Range, AfterValidator(_shares)]
PerView = float | tuple[float, float]  # one number for both views, or [query, key]


@dataclass(frozen=True, config=STRICT)
class SaliencyConfig:
    """levels: sides in px at which whole images are scored; the first is the views' own.
    correction: views that teach a store how a view's own map differs, 0 for none. precision:
    maps in float32 depend least on the device; `auto` is bfloat16 on CUDA.
    shard_rows: images per unit of work. batch: images per forward, part of the result (its size
    changes rounding)."""

    levels: tuple[PositiveInt, ...] = (224, 320, 448)
    correction: NonNegativeInt = 1024
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    shard_rows: PositiveInt = 1024
    batch: PositiveInt = 32

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels must grow, got {list(self.levels)}")


@dataclass(frozen=True, config=STRICT)
class EncoderConfig:
    """arch: a residual network of ours (resnet10 to resnet152), or any ConvNet of torchvision that
    ends in global average pooling. width: channels of a residual network's first stage (64 in the
    papers, and for all others). stem: `imagenet` (as published: 7x7 stride 2, max pool), `small`
    (3x3 stride 1: maps of 4 times the side) or `small2` (3x3 stride 2: of twice the side)."""

    arch: str = "resnet50"
    width: PositiveInt = 64
    stem: Literal["imagenet", "small", "small2"] = "imagenet"


@dataclass(frozen=True, config=STRICT)
class ViewConfig:
    """One view: geometry, then photometry. size: px. grid: patches a side. crop: area shares.
    jitter: brightness, contrast, saturation, hue. blur_p, solarize_p: for both views or [query,
    key]; further views are like the query. blur_sigma: px, at this size."""

    size: PositiveInt = 224
    grid: PositiveInt = 7
    crop: Range = (0.2, 1.0)
    aspect: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: PerView = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarize_p: PerView = 0.0

    def __post_init__(self) -> None:
        if self.size % self.grid:
            raise ValueError(
                f"grid {self.grid} does not divide size {self.size}: patches must be whole pixels"
            )
        for name in ("flip", "jitter_p", "gray_p", "blur_p", "solarize_p"):
            value = getattr(self, name)
            numbers = list(value) if isinstance(value, tuple) else [value]
            if not all(0 <= p <= 1 for p in numbers):
                shown = numbers if isinstance(value, tuple) else value
                raise ValueError(f"{name} must be a probability between 0 and 1, got {shown}")
        for name, most in (("crop", 1), ("aspect", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                bound = " to 1" if most == 1 else ""
                raise ValueError(f"{name} must be [low, high] above 0{bound}, got {[low, high]}")
        if not all(s >= 0 for s in self.jitter) or self.jitter[3] > 0.5:
            raise ValueError(
                "jitter must be at least 0, and its hue at most 0.5 (half a turn), "
                f"got {list(self.jitter)}"
            )


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """batch: global. lr: the peak, for this batch; warm-up and cosine run per step. schedule: what
    follows the warm-up; `step` multiplies by gamma at the start of every epoch in milestones.
    momentum: of SGD and LARS. weight_decay: L2 but for adamw, whose decay is apart. precision:
    `auto` is bfloat16 on CUDA. images: `stream` from disk, or `resident` on the device."""

    epochs: PositiveInt = 200
    warmup_epochs: float = 10
    batch: PositiveInt = 128
    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "sgd"
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[PositiveInt, ...] = ()
    gamma: float = 0.1
    lr: float = 0.015
    momentum: float = 0.9
    weight_decay: float = 1e-4
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    images: Literal["stream", "resident"] = "stream"

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "lr", "momentum", "weight_decay", "gamma"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than the training "
                f"(epochs {self.epochs})"
            )
        epochs = list(self.milestones)
        if self.schedule == "step" and not epochs:
            raise ValueError("schedule step needs milestones: the epochs where the rate drops")
        if self.schedule != "step" and epochs:
            raise ValueError(f"milestones {epochs} need schedule: step, not {self.schedule}")
        if epochs != sorted(set(epochs)) or max(epochs, default=0) >= self.epochs:
            raise ValueError(
                f"milestones must grow and stay below epochs {self.epochs}, got {epochs}"
            )


@dataclass(frozen=True, config=STRICT)
class Chosen:
    """Names of runs: which of them the evaluations are for that are not made of every run.
    variance_through: whose encoders see the views of the runs of `variance` too."""

    linear: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    transfer: tuple[str, ...] = ()
    detect: tuple[str, ...] = ()
    variance: tuple[str, ...] = ()
    variance_through: tuple[str, ...] = ()


CHOSEN = tuple(field.name for field in fields(Chosen))


@dataclass(frozen=True)
class RunConfig:
    """One pretraining run: the common sections with the run's own entries laid over them."""

    name: str
    encoder: EncoderConfig
    view: ViewConfig
    mask: Choice
    framework: Choice
    train: TrainConfig


RUN_SECTIONS = {"encoder": EncoderConfig, "view": ViewConfig, "train": TrainConfig}
RUN_CHOICES = ("mask", "framework")
_NAME = re.compile(r"[a-z0-9-]+")


class Params:
    """params.yaml. `reads` collects the dotted keys that were asked for, with their values."""

    def __init__(self, values: Mapping[str, Any], source: str = "params.yaml") -> None:
        self.values = values
        self.source = source
        self.reads: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> "Params":
        """Raises UserError when the file is missing or is not a YAML mapping."""
        try:
            values = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} not found: run from the project's folder") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must be a mapping of sections, not {type(values).__name__}")
        return cls(values, str(path))

    def raw(self, key: str) -> Any:
        """The value at a dotted key, recorded as read. Raises UserError when it is not there."""
        value: Any = self.values
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise UserError(f"{self.source}: `{key}` is missing")
            value = value[part]
        self.reads[key] = value
        return value

    def section(self, key: str, schema: type[T]) -> T:
        """The section at `key` as a `schema` dataclass. Raises UserError naming key and value."""
        return check(self.raw(key), schema, where=f"{self.source}: {key}")

    def choice(self, key: str) -> Choice:
        """The section at `key` as a name and its options."""
        return _choice(self.raw(key), f"{self.source}: {key}")

    def seed(self) -> int:
        return self.section("seed", int)

    def run_seed(self, name: str) -> int:
        """The seed of a run's pretraining: its own, or else the common one."""
        own = {"seed": self.seed()} | (self.raw(f"runs.{name}") or {})
        return check(own["seed"], int, f"{self.source}: runs.{name}.seed")

    def run_names(self) -> list[str]:
        """The names under `runs`, in order. Raises UserError for a name DVC could not carry."""
        runs = self.raw("runs")
        if not isinstance(runs, Mapping) or not (runs or self.values.get("imports")):
            raise UserError(f"{self.source}: `runs` must name at least one pretraining run")
        return self._named("runs")

    def import_names(self) -> list[str]:
        """The names under `imports`, in order. Raises UserError as `run_names` does, and for the
        name of a run."""
        imports = self._named("imports") if "imports" in self.values else []
        for name in imports:
            if name in self.run_names():
                raise UserError(
                    f"{self.source}: imports.{name}: there is a run of this name already; both "
                    f"would be artifacts/pretrain/{name}"
                )
        return imports

    def _named(self, key: str) -> list[str]:
        for name in (found := self._mapping(key)):
            _check_name(name, f"{self.source}: {key}.{name}")
        return list(found)

    def _mapping(self, key: str) -> Mapping[str, Any]:
        value = self.raw(key)
        if not isinstance(value, Mapping):
            raise UserError(f"{self.source}: {key}: must be a mapping, got {value!r}")
        return value

    def chosen(self) -> dict[str, list[str]]:
        """Of every run and import, the folders of the evaluations chosen for it: their protocols;
        transfer-<dataset>, detect-<dataset>, variance-<run whose encoder it is>. Raises
        UserError."""
        where = f"{self.source}: evaluate.chosen"
        asked = self.section("evaluate.chosen", Chosen)
        sets = {key: [f"-{d}" for d in self._named(key)] for key in ("transfer", "detect")}
        imported = self.import_names()
        found: dict[str, list[str]] = {name: [] for name in [*self.run_names(), *imported]}
        folders = {
            field.name: [f"{field.name}{name}" for name in sets.get(field.name, [""])]
            for field in fields(asked)
        }
        folders["variance"] += [f"variance-{name}" for name in asked.variance_through]
        folders["variance_through"] = []
        for protocol, made in folders.items():
            for name in getattr(asked, protocol):
                if name not in found:
                    raise UserError(
                        f"{where}.{protocol}: no run {name!r}; there are: {', '.join(found)}"
                    )
                if "variance" in protocol and name in imported:
                    told = f"{name} is imported: its views and its head are not known here"
                    raise UserError(f"{where}.{protocol}: {told}")
                found[name] += made
        return found

    def run(self, name: str) -> RunConfig:
        """The run `name`: its own entries laid over the common sections."""
        overlay = self.raw(f"runs.{name}") or {}
        allowed, where = [*RUN_SECTIONS, *RUN_CHOICES], f"{self.source}: runs.{name}"
        if not isinstance(overlay, Mapping):
            raise UserError(f"{where}: must be a mapping, got {overlay!r}")
        for key, entry in overlay.items():
            if key not in (*allowed, "seed"):
                told = f"is not a section of a run; allowed: {', '.join(allowed)}, seed"
                raise UserError(f"{where}.{key} {told}")
            if key != "seed" and not isinstance(entry, Mapping):
                raise UserError(f"{where}.{key}: must be a mapping, got {entry!r}")
        merged = {key: merge(self._mapping(key), overlay.get(key, {})) for key in allowed}
        sections: dict[str, Any] = {
            key: check(merged[key], schema, where=f"{where} over {key}")
            for key, schema in RUN_SECTIONS.items()
        }
        sections |= {key: _choice(merged[key], f"{where} over {key}") for key in RUN_CHOICES}
        return RunConfig(name=name, **sections)


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        told = "a name is made of a-z, 0-9 and -, since DVC uses it in paths and keys"
        raise UserError(f"{where}: {told}")


def merge(common: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` laid over `common`, key by key and mapping by mapping.

    A mapping that chooses another `name` replaces the whole: options belong to their function.
    """
    if "name" in override and override["name"] != common.get("name"):
        return dict(override)
    both = dict(common)
    for key, value in override.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merge(both[key], value) if nested else value
    return both


def pick(table: Mapping[str, T], choice: Choice, where: str) -> T:
    """The entry of `table` that `choice` names. Raises UserError listing what there is."""
    if choice.name not in table:
        raise UserError(f"{where}: no `{choice.name}` here; choose from {', '.join(table)}")
    return table[choice.name]


def _choice(value: Any, where: str) -> Choice:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{where}: must be a mapping with a `name`, got {value!r}")
    return Choice(value["name"], {key: val for key, val in value.items() if key != "name"})
