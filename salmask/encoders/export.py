"""Export of encoders to the weights files of other programs.

The file uses the other program's names. It is read back into that program's network, whose features
are compared with the encoder's. A text file next to it describes the input, because weights contain
neither normalisation nor input filter.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from salmask.encoders import on_disk as encoder_file
from salmask.encoders.backbones import build_encoder, head_name
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.files import file_digest, write_bytes
from salmask.params.encoder import EncoderConfig

Tensors = Mapping[str, Tensor]
TOLERANCE = 1e-4  # of the largest feature
_IMAGES = 4
_PUBLISHED_WIDTH = 64


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Args:
        notes: content of the text file next to the weights.
        difference: largest difference of the features, relative to `largest`.
        largest: largest absolute value of a feature.
    """

    notes: str
    difference: float
    largest: float


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        suffixes: of its files.
        refuse: raises UserError for a network that the format does not support.
        write: (weights, architecture, file) -> None.
        rebuild: (file, architecture) -> the other program's network with the weights of the file.
        usage: returns lines that explain how to load the file.
    """

    suffixes: tuple[str, ...]
    refuse: Callable[[EncoderConfig, Tensors], None]
    write: Callable[[Tensors, EncoderConfig, Path], None]
    rebuild: Callable[[Path, EncoderConfig], nn.Module]
    usage: Callable[[Encoder], str]


def export(folder: Path, layout: str, out: Path) -> Exported:
    """Exports an encoder, and checks that the other program's network computes its features.

    Args:
        folder: with encoder.json and encoder.safetensors.
        layout: a name in FORMATS.
        out: the file to write. `<out>.txt` describes the input.

    Raises:
        UserError: when the features differ, when the format does not support the network, and as
            `encoder_file.load` does. Then no file is written.
    """
    encoder = encoder_file.load(folder, torch.device("cpu"))
    chosen, weights = FORMATS[layout], encoder.network.state_dict()
    if out.suffix not in chosen.suffixes:
        raise UserError(
            f"{out}: files of format {layout} must end in {' or '.join(chosen.suffixes)}"
        )
    chosen.refuse(encoder.config, weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as place:
        draft = Path(place) / out.name
        chosen.write(weights, encoder.config, draft)
        difference, largest = compare(encoder, chosen.rebuild(draft, encoder.config))
        if not difference <= TOLERANCE:
            raise UserError(
                f"{layout}'s {encoder.config.arch} with these weights has other features: they "
                f"differ by {difference:.1e} of the largest; nothing was written"
            )
        notes = _notes(encoder, layout, file_digest(folder / "encoder.safetensors"))
        draft.replace(out)
    write_bytes(out.with_name(f"{out.name}.txt"), f"{notes}\n".encode())
    return Exported(notes, difference, largest)


@torch.inference_mode()
def compare(encoder: Encoder, theirs: nn.Module) -> tuple[float, float]:
    """The largest relative difference of the features of random images, and the largest feature.

    Args:
        encoder: the encoder.
        theirs: a network that takes prepared images.
    """
    side = encoder.spec.size
    images = torch.rand(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours = encoder(images)
    others = theirs.eval()(encoder.prepared(images)).float()
    largest = ours.abs().max()
    if others.shape != ours.shape:
        return float("inf"), float(largest)
    return float((others - ours).abs().max() / largest.clamp(min=1e-30)), float(largest)


def _notes(encoder: Encoder, layout: str, digest: str) -> str:
    config, spec = encoder.config, encoder.spec
    lines = [
        f"{layout}: {config.arch}, width {config.width}, stem {config.stem}; from the "
        f"encoder.safetensors with sha256 {digest}",
        f"input: RGB in [0,1], shorter side {spec.shorter} px, centre {spec.size} px; minus "
        f"{list(spec.mean)}, over {list(spec.std)}",
    ]
    if spec.filter:
        kernel, sigma = spec.filter["kernel"], spec.filter["sigma"]
        lines.append(
            f"WARNING: THIS ENCODER NEEDS HIGH-PASS FILTERED IMAGES, AND THESE WEIGHTS CONTAIN NO "
            f"FILTER. After the normalisation, subtract from every image its Gaussian blur "
            f"(kernel {kernel} px, sigma {sigma:g} px, reflected borders), at training and at test."
        )
    return "\n".join([*lines, FORMATS[layout].usage(encoder)])


def _refuse_stem(config: EncoderConfig, program: str) -> None:
    if config.stem != "imagenet":
        raise UserError(
            f"{program} has no `stem: {config.stem}` (3x3, less pooling), only `imagenet`; "
            f"`--format safetensors` supports all stems"
        )


def _refuse_width(config: EncoderConfig, program: str) -> None:
    if config.width != _PUBLISHED_WIDTH:
        raise UserError(
            f"{program}'s {config.arch} starts with {_PUBLISHED_WIDTH} channels, this one with "
            f"{config.width}; `--format safetensors` supports all widths"
        )


# -------------------------------------------------------------------------------- safetensors


def _accept(config: EncoderConfig, weights: Tensors) -> None:
    """Our own format supports every network."""


def _write_own(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    kept = {key: value.contiguous() for key, value in weights.items()}
    save_file(kept, file, metadata={"encoder": json.dumps(asdict(config))})


def _rebuild_own(file: Path, config: EncoderConfig) -> nn.Module:
    with safe_open(file, "pt") as opened:
        options = json.loads(opened.metadata()["encoder"])
    network = build_encoder(EncoderConfig(**options))
    network.load_state_dict(load_file(file))
    return network


def _use_own(encoder: Encoder) -> str:
    return (
        "to load: salmask.encoders.backbones.build_encoder(EncoderConfig(...)), with the metadata "
        "of the file"
    )


# -------------------------------------------------------------------------------- torchvision


def _refuse_torchvision(config: EncoderConfig, weights: Tensors) -> None:
    import torchvision  # here and below: imports of libraries that take seconds

    if config.arch not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no {config.arch}; `--format safetensors` supports it")
    if config.arch.startswith("mnasnet"):
        raise UserError(f"torchvision's {config.arch} loads no state that has only tensors")
    _refuse_stem(config, "torchvision")
    _refuse_width(config, "torchvision")


def _write_torch(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in weights.items()}, file)
    else:
        torch.save({key: value.contiguous() for key, value in weights.items()}, file)


def _read_torch(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _rebuild_torchvision(file: Path, config: EncoderConfig) -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.get_model(config.arch, weights=None)
    network.set_submodule(head_name(config), nn.Identity())
    network.load_state_dict(_read_torch(file))
    return network


def _use_torchvision(encoder: Encoder) -> str:
    arch, head = encoder.config.arch, head_name(encoder.config)
    return (
        f"to load: network = torchvision.models.get_model({arch!r}); "
        f"network.set_submodule({head!r}, torch.nn.Identity()); network.load_state_dict(...)"
    )


# --------------------------------------------------------------------------------------- timm


def _refuse_timm(config: EncoderConfig, weights: Tensors) -> None:
    import timm

    if not timm.is_model(config.arch):
        raise UserError(f"timm has no {config.arch}; `--format safetensors` supports it")
    _refuse_stem(config, "timm")
    _refuse_width(config, "timm")
    with torch.device("meta"):
        theirs = timm.create_model(config.arch, pretrained=False, num_classes=0).state_dict()
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in weights.items()}:
        other = next((key for key in theirs if key not in weights), "sizes")
        raise UserError(
            f"timm's {config.arch} differs from torchvision's, which this encoder has "
            f"(`{other}`): export it as torchvision"
        )


def _rebuild_timm(file: Path, config: EncoderConfig) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(config.arch, pretrained=False, num_classes=0)
    network.load_state_dict(_read_torch(file))
    return network


def _use_timm(encoder: Encoder) -> str:
    return (
        f"to load: timm.create_model({encoder.config.arch!r}, num_classes=0, checkpoint_path=...)"
    )


# ---------------------------------------------------------------------------------- detectron2

_STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
_PARTS = {
    "bn1": ["conv1", "norm"],
    "bn2": ["conv2", "norm"],
    "bn3": ["conv3", "norm"],
    "downsample.0": ["shortcut"],
    "downsample.1": ["shortcut", "norm"],
}


def detectron2_key(key: str) -> str:
    """Translates a key of torchvision's ResNets to detectron2's name, as MoCo's converter does."""
    *layers, tensor = key.split(".")
    place = [_STAGES[layers[0]], layers[1]] if layers[0] in _STAGES else ["stem"]
    part = layers[2:] if layers[0] in _STAGES else layers
    return ".".join([*place, *_PARTS.get(".".join(part), part), tensor])


def _refuse_detectron2(config: EncoderConfig, weights: Tensors) -> None:
    if config.arch not in ("resnet50", "resnet101", "resnet152"):
        raise UserError(
            f"detectron2's C4 models support ResNets with bottleneck blocks (resnet50, resnet101, "
            f"resnet152), not {config.arch}"
        )
    _refuse_stem(config, "detectron2")


def _write_detectron2(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    named = {detectron2_key(key): value.numpy() for key, value in weights.items()}
    content = {"model": named, "__author__": "salmask", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content))


def _rebuild_detectron2(file: Path, config: EncoderConfig) -> nn.Module:
    """Our own ResNet with the file's weights: detectron2 need not be installed."""
    arrays: Mapping[str, np.ndarray] = pickle.loads(file.read_bytes())[
        "model"
    ]  # written by `export` itself
    network = build_encoder(config)
    names = {key: detectron2_key(key) for key in network.state_dict()}
    if set(names.values()) != set(arrays):
        raise UserError("detectron2: two weights have the same name")
    network.load_state_dict({key: torch.from_numpy(arrays[name]) for key, name in names.items()})
    return network


def _use_detectron2(encoder: Encoder) -> str:
    width = encoder.config.width
    mean = [round(255 * value, 3) for value in encoder.spec.mean]
    std = [round(255 * value, 3) for value in encoder.spec.std]
    depth = encoder.config.arch.removeprefix("resnet")
    return (
        "to load, in the config (images in RGB order and 0 to 255; stride in the 3x3):\n"
        f"MODEL:\n  WEIGHTS: this file\n  PIXEL_MEAN: {mean}\n  PIXEL_STD: {std}\n"
        f"  RESNETS: {{DEPTH: {depth}, STRIDE_IN_1X1: False, STEM_OUT_CHANNELS: {width}, "
        f"RES2_OUT_CHANNELS: {4 * width}, WIDTH_PER_GROUP: {width}}}\n"
        'INPUT: {FORMAT: "RGB"}'
    )


FORMATS = {
    "torchvision": Format(
        (".pth", ".safetensors"),
        _refuse_torchvision,
        _write_torch,
        _rebuild_torchvision,
        _use_torchvision,
    ),
    "timm": Format((".pth", ".safetensors"), _refuse_timm, _write_torch, _rebuild_timm, _use_timm),
    "detectron2": Format(
        (".pkl",), _refuse_detectron2, _write_detectron2, _rebuild_detectron2, _use_detectron2
    ),
    "safetensors": Format((".safetensors",), _accept, _write_own, _rebuild_own, _use_own),
}
