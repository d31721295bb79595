"""Imports of encoders that other programs trained.

Checkpoints are read without running code from them. Every weight of the encoder must be in the
file, and every key of the file must be known: of the encoder, or of a part that is dropped.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.encoders import on_disk as encoder_file
from salmask.encoders import weight_files
from salmask.encoders.backbones import build_encoder, check_encoder, head_name
from salmask.encoders.layouts import LAYOUTS, recognise
from salmask.encoders.on_disk import InputSpec
from salmask.errors import UserError
from salmask.files import file_digest
from salmask.params.encoder import EncoderConfig
from salmask.params.mistakes import did_you_mean
from salmask.params.ranges import Finite, Positive, PositiveInt, Sha256, Side, ViewSide, Width
from salmask.params.values import STRICT

Tensors = dict[str, Tensor]
Deviations = tuple[Positive, Positive, Positive]
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_NUMBERED = {  # the layers of a ResNet in a sequence of its children
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4",
}  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class InputFilter:
    """A filter of the input, applied after the normalisation.

    Args:
        name: `high_pass`.
        kernel: size of the blur in px, odd.
        sigma: standard deviation of the blur in px.
    """

    name: Literal["high_pass"]
    kernel: PositiveInt
    sigma: Positive


@dataclass(frozen=True, config=STRICT)
class Import:
    """An entry of `imports:`.

    Args:
        path: a .safetensors file, or a file written by torch.save.
        arch: as in `encoder:`.
        layout: a name in salmask/encoders/layouts; `auto` recognises the layout by the keys.
        width: as in `encoder:`.
        stem: as in `encoder:`.
        size: side of an image at evaluation in px.
        shorter: shorter side of the resized image before the centre crop in px. By default
            256/224 of `size`.
        mean: of each channel, for values in [0,1].
        std: of each channel, for values in [0,1].
        filter: of the input, as in encoder.json.
        sha256: of the file, 64 hex digits.
        drop: parts of the checkpoint to ignore, in addition to those that the layout names.
    """

    path: Path
    arch: str
    layout: str = "auto"
    width: Width = 64
    stem: Literal["imagenet", "small", "small2"] = "imagenet"
    size: ViewSide = 224
    shorter: Side | None = None
    mean: tuple[Finite, Finite, Finite] = IMAGENET_MEAN
    std: Deviations = IMAGENET_STD
    filter: InputFilter | None = None
    sha256: Sha256 | None = None
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.layout != "auto" and self.layout not in LAYOUTS:
            raise ValueError(
                f"layout no layout `{self.layout}`; choose from auto, {', '.join(LAYOUTS)}"
                f"{did_you_mean(self.layout, LAYOUTS)}"
            )
        if self.shorter is not None and self.shorter < self.size:
            raise ValueError(f"shorter {self.shorter} is less than size {self.size}")
        if self.filter and (self.filter.kernel % 2 == 0 or self.filter.kernel >= 2 * self.size):
            raise ValueError(
                f"filter kernel must be odd and below twice the size, got {self.filter.kernel}"
            )

    @property
    def encoder(self) -> EncoderConfig:
        """The architecture."""
        return EncoderConfig(self.arch, self.width, self.stem)


@dataclass(frozen=True, config={"arbitrary_types_allowed": True})
class ImportedWeights:
    """The content of a checkpoint.

    Args:
        weights: of the encoder, under our names.
        layout: name of the checkpoint's layout.
        dropped: parts of the checkpoint that are not the encoder.
        sha256: of the file.
    """

    weights: Tensors
    layout: str
    dropped: tuple[str, ...]
    sha256: str


def check(config: Import, where: str) -> None:
    """Checks the architecture, without reading the file. Raises UserError naming `where`."""
    try:
        check_encoder(config.encoder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read(config: Import, where: str) -> ImportedWeights:
    """Reads the encoder's weights from the file.

    Raises UserError, starting with `where`, when the file is missing, has another sha256, cannot be
    read as tensors or does not fit. The message names keys that are missing, unknown or of another
    shape.
    """
    check(config, where)
    try:
        digest = _digest(config)
        tensors = _without_wrapper(weight_files.read(config.path))
        name = config.layout if config.layout != "auto" else recognise(tensors, config.drop)
        trunk, dropped = _trunk(tensors, name, config)
        ours = build_encoder(config.encoder).state_dict()
        heads = (head_name(config.encoder), *config.drop)
        fitted = weight_files.fitted(trunk, ours, config.path, heads)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    inside = {head for head in heads if any(f"{key}.".startswith(f"{head}.") for key in trunk)}
    return ImportedWeights(fitted, name, tuple(sorted(dropped | inside)), digest)


def save(config: Import, imported: ImportedWeights, folder: Path) -> None:
    """Writes encoder.safetensors and encoder.json, as a pretraining does."""
    input_filter = asdict(config.filter) if config.filter else None
    shorter = config.shorter or encoder_file.shorter_side(config.size)
    spec = InputSpec(config.size, shorter, input_filter, config.mean, config.std)
    source: dict[str, Any] = {"sha256": imported.sha256, "layout": imported.layout}
    source["dropped"] = list(imported.dropped)
    encoder_file.save(imported.weights, config.encoder, spec, folder, source)


def _digest(config: Import) -> str:
    if not config.path.is_file():
        raise UserError(f"no file at {config.path}: put the checkpoint there, or change `path`")
    digest = file_digest(config.path)
    if config.sha256 and config.sha256.lower() != digest:
        raise UserError(
            f"{config.path} is not the expected file: its sha256 is {digest}, "
            f"`sha256` is {config.sha256}"
        )
    return digest


def _without_wrapper(tensors: Tensors) -> Tensors:
    """Removes the prefixes of wrappers that all keys have, in any order.

    They are `module.` of DistributedDataParallel, `_orig_mod.` of torch.compile and `model.` of
    training programs.
    """
    while tensors:
        prefix = next((p for p in _WRAPPERS if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _trunk(tensors: Tensors, name: str, config: Import) -> tuple[Tensors, set[str]]:
    """The encoder's tensors under torchvision's names, and the first parts of the other keys."""
    layout = LAYOUTS[name]
    if not layout.has_trunk(tensors):
        raise UserError(
            f"{config.path} does not have layout {name}: no layer "
            f"{'numbers' if layout.numbered else 'names'} after `{layout.trunk}`; "
            f"its keys start with {_first_parts(tensors)}"
        )
    if unknown := layout.unknown(tensors, config.drop):
        raise UserError(
            f"{config.path} has parts that layout {name} does not include: "
            f"{_first_parts(unknown)}; list those that do not belong to the encoder under `drop`"
        )
    if config.stem != "imagenet" and not layout.same_small_stem:
        raise UserError(
            f"stem {config.stem}: solo-learn's 3x3 stem pads by 2 px, ours by 1 px, so the "
            f"features would differ"
        )
    start = layout.trunk
    trunk = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    if layout.numbered:
        if config.encoder.family != "residual":
            raise UserError(f"layout {name} numbers the layers of ResNets, not of {config.arch}")
        trunk = {_layer_name(key): value for key, value in trunk.items()}
    return trunk, {key.partition(".")[0] for key in tensors if not key.startswith(start)}


def _layer_name(key: str) -> str:
    number, _, rest = key.partition(".")
    return f"{_NUMBERED.get(number, number)}.{rest}"


def _first_parts(keys: Iterable[str]) -> str:
    names = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
