"""Encoders that others trained: a checkpoint of a known layout becomes one of ours, key by key.

Files are read without running code from them. Every weight of the encoder must be in the file, and
every key of the file be known: the encoder's, or of a part that is left out by its name.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.encoders import on_disk as encoder_file
from salmask.encoders import weight_files
from salmask.encoders.backbones import build_encoder, check_encoder, head_name
from salmask.encoders.on_disk import InputSpec
from salmask.errors import UserError
from salmask.params.encoder import EncoderConfig
from salmask.params.values import STRICT
from salmask.provenance import file_digest

Tensors = dict[str, Tensor]
Deviations = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


@dataclass(frozen=True)
class Layout:
    """How a program names what it saves. trunk: what the encoder's keys begin with. others: what
    may lie beside the encoder, and is left out. numbered: torchvision's ResNet as a sequence of its
    children, so that keys count layers instead of naming them."""

    trunk: str
    others: tuple[str, ...] = ()
    numbered: bool = False


_SOLO = (
    "classifier", "projector", "predictor", "prototypes", "queue", "queue_y", "queue_ptr",
    "momentum_backbone", "momentum_encoder", "momentum_projector", "momentum_predictor",
    "momentum_classifier",
)  # fmt: skip
_LIGHTLY = (
    "projection_head", "prediction_head", "backbone_momentum", "projection_head_momentum",
    "prototypes", "memory_bank", "criterion",
)  # fmt: skip
LAYOUTS = {
    "moco": Layout("encoder_q.", ("encoder_k", "queue", "queue_ptr")),
    "moco_v3": Layout("base_encoder.", ("momentum_encoder", "predictor")),
    "simsiam": Layout("encoder.", ("predictor",)),
    "lightly": Layout("backbone.", _LIGHTLY, numbered=True),
    "solo": Layout("backbone.", _SOLO),
    "solo_old": Layout("encoder.", _SOLO),  # as its first versions named it
    "torchvision": Layout(""),
}
_NUMBERED = {
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4",
}  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class Filter:
    """A filter that the encoder expects on every input, after the normalisation. px."""

    name: Literal["high_pass"]
    kernel: PositiveInt
    sigma: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class Import:
    """An entry of `imports:`. path: .safetensors, or what torch.save wrote. layout: a name in
    LAYOUTS; `auto` tells by the keys. arch, width, stem: as of `encoder:`. size: px of an
    evaluation view; shorter: px of the shorter side before the centre crop, 256/224 of size if not
    given. mean, std: of inputs in [0,1]. filter: as in encoder.json. sha256: that the file must
    have. drop: parts of the checkpoint to leave out, besides those known of its layout."""

    path: Path
    arch: str
    layout: Literal[
        "auto", "moco", "moco_v3", "simsiam", "lightly", "solo", "solo_old", "torchvision"
    ] = "auto"
    width: PositiveInt = 64
    stem: Literal["imagenet", "small", "small2"] = "imagenet"
    size: PositiveInt = 224
    shorter: PositiveInt | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: Deviations = IMAGENET_STD
    filter: Filter | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shorter is not None and self.shorter < self.size:
            raise ValueError(f"shorter {self.shorter} is less than size {self.size}")
        if self.filter and (self.filter.kernel % 2 == 0 or self.filter.kernel >= 2 * self.size):
            raise ValueError(
                f"filter.kernel must be odd and below twice the size, got {self.filter.kernel}"
            )

    @property
    def encoder(self) -> EncoderConfig:
        return EncoderConfig(self.arch, self.width, self.stem)


@dataclass(frozen=True, config={"arbitrary_types_allowed": True})
class Imported:
    """What a file held. dropped: its parts that are not the encoder. sha256: of the file."""

    weights: Tensors
    layout: str
    dropped: tuple[str, ...]
    sha256: str


def check(wanted: Import, where: str) -> None:
    """Raises UserError, naming `where`, for a network that there is not; looks at no file."""
    try:
        check_encoder(wanted.encoder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read(wanted: Import, where: str) -> Imported:
    """The encoder's weights in the file, under our names.

    Raises UserError, naming `where`, when the file is missing or another one, cannot be read as
    tensors, or does not fit: with the keys that are missing, unknown or of another shape.
    """
    check(wanted, where)
    try:
        digest = _digest(wanted)
        found = _without_wrapper(weight_files.read(wanted.path))
        name = wanted.layout if wanted.layout != "auto" else recognise(found, wanted.drop)
        theirs, dropped = _trunk(found, name, wanted)
        ours = build_encoder(wanted.encoder).state_dict()
        heads = (head_name(wanted.encoder), *wanted.drop)
        fitted = weight_files.fitted(theirs, ours, wanted.path, heads)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    inside = {head for head in heads if any(f"{key}.".startswith(f"{head}.") for key in theirs)}
    return Imported(fitted, name, tuple(sorted(dropped | inside)), digest)


def save(wanted: Import, found: Imported, folder: Path) -> None:
    """Writes encoder.safetensors and encoder.json, as a pretraining does."""
    filtered = asdict(wanted.filter) if wanted.filter else None
    shorter = wanted.shorter or encoder_file.shorter_side(wanted.size)
    spec = InputSpec(wanted.size, shorter, filtered, wanted.mean, wanted.std)
    source: dict[str, Any] = {"sha256": found.sha256, "layout": found.layout}
    source["dropped"] = list(found.dropped)
    encoder_file.save(found.weights, wanted.encoder, spec, folder, source)


def recognise(tensors: Tensors, drop: tuple[str, ...] = ()) -> str:
    """The layout that explains all keys, else the first that explains some: reading then says what
    is left over. Keys without a prefix that is known are torchvision's."""
    fitting = [name for name, at in LAYOUTS.items() if at.trunk and _has_trunk(tensors, at)]
    whole = [name for name in fitting if not _unknown(tensors, LAYOUTS[name], drop)]
    return [*whole, *fitting, "torchvision"][0]


def _digest(wanted: Import) -> str:
    if not wanted.path.is_file():
        raise UserError(f"no file at {wanted.path}: put the checkpoint there, or change `path`")
    digest = file_digest(wanted.path)
    if wanted.sha256 and wanted.sha256.lower() != digest:
        raise UserError(
            f"{wanted.path} is another file: its sha256 is {digest}, `sha256` says {wanted.sha256}"
        )
    return digest


def _without_wrapper(tensors: Tensors) -> Tensors:
    """The same without what DistributedDataParallel puts before every key."""
    wrapped = all(key.startswith("module.") for key in tensors)
    return (
        {key.removeprefix("module."): value for key, value in tensors.items()}
        if wrapped
        else tensors
    )


def _has_trunk(tensors: Tensors, layout: Layout) -> bool:
    inside = [key.removeprefix(layout.trunk) for key in tensors if key.startswith(layout.trunk)]
    numbers = all(key.partition(".")[0].isdigit() for key in inside)
    return bool(inside) and numbers == layout.numbered


def _unknown(tensors: Tensors, layout: Layout, drop: tuple[str, ...]) -> list[str]:
    """Keys beside the trunk that the layout does not know."""
    known = tuple(f"{name}." for name in (*layout.others, *drop))
    return [k for k in tensors if not k.startswith(layout.trunk) and not f"{k}.".startswith(known)]


def _trunk(tensors: Tensors, name: str, wanted: Import) -> tuple[Tensors, set[str]]:
    """The encoder's own tensors under torchvision's names, and the parts beside it."""
    layout = LAYOUTS[name]
    if not _has_trunk(tensors, layout):
        kind = "numbers" if layout.numbered else "names"
        raise UserError(
            f"{wanted.path} is not of layout {name}: no layers' {kind} after "
            f"`{layout.trunk}`; its keys begin with {_firsts(tensors)}"
        )
    if unknown := _unknown(tensors, layout, wanted.drop):
        raise UserError(
            f"{wanted.path}, of layout {name}, holds more than is known of that: "
            f"{_firsts(unknown)}; name what is no part of the encoder under `drop`"
        )
    if name.startswith("solo") and wanted.stem != "imagenet":
        raise UserError(
            f"stem {wanted.stem}: solo-learn's 3x3 stem pads by 2 px, ours by 1, so that its "
            f"features would be others"
        )
    start = layout.trunk
    trunk = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    if layout.numbered:
        if wanted.encoder.family != "residual":
            raise UserError(f"layout {name} counts the layers of ResNets, not of {wanted.arch}")
        trunk = {_named(key): value for key, value in trunk.items()}
    return trunk, {key.partition(".")[0] for key in tensors if not key.startswith(start)}


def _named(key: str) -> str:
    number, _, rest = key.partition(".")
    return f"{_NUMBERED.get(number, number)}.{rest}"


def _firsts(keys: Iterable[str]) -> str:
    names = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
