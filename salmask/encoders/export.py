"""Encoders as weights files of other programs: named as they name, read back and compared.

Weights hold no normalisation and no input filter: what they expect is written in a text file beside
them, and a network that a format cannot express is refused.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from salmask.encoders import on_disk as encoder_file
from salmask.encoders.backbones import build_encoder, head_name
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.files import write_bytes
from salmask.params.encoder import EncoderConfig
from salmask.provenance import file_digest

Tensors = Mapping[str, Tensor]
TOLERANCE = 1e-4  # of the largest feature
_IMAGES = 4
_PUBLISHED_WIDTH = 64


@dataclass(frozen=True)
class Exported:
    """notes: what to know of the file, as beside it. difference: the largest of the features, as a
    share of the largest feature. largest: that feature's absolute value."""

    notes: str
    difference: float
    largest: float


@dataclass(frozen=True)
class Format:
    """suffixes: of its files. refuse: raises UserError for a network that it cannot express.
    write: (weights, description, file). rebuild: (file, description) -> that program's network with
    the file's weights. usage: lines on how to load it."""

    suffixes: tuple[str, ...]
    refuse: Callable[[EncoderConfig, Tensors], None]
    write: Callable[[Tensors, EncoderConfig, Path], None]
    rebuild: Callable[[Path, EncoderConfig], nn.Module]
    usage: Callable[[Encoder], str]


def export(folder: Path, layout: str, out: Path) -> Exported:
    """Writes the encoder in `folder` (encoder.json, encoder.safetensors) to `out`, in a layout of
    FORMATS, and `out`.txt with what the weights do not say.

    The file is read back into that program's network, which must find the same features in the same
    images. Raises UserError, and leaves no file, where it does not, where the format cannot express
    the network, and as `encoder_file.load` does.
    """
    encoder = encoder_file.load(folder, torch.device("cpu"))
    chosen, weights = FORMATS[layout], encoder.network.state_dict()
    if out.suffix not in chosen.suffixes:
        raise UserError(f"{out}: a file of format {layout} ends in {' or '.join(chosen.suffixes)}")
    chosen.refuse(encoder.config, weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as place:
        draft = Path(place) / out.name
        chosen.write(weights, encoder.config, draft)
        difference, largest = compare(encoder, chosen.rebuild(draft, encoder.config))
        if not difference <= TOLERANCE:
            raise UserError(
                f"{layout}'s {encoder.config.arch} with these weights finds other features: they "
                f"differ by {difference:.1e} of the largest; nothing was written"
            )
        notes = _notes(encoder, layout, file_digest(folder / "encoder.safetensors"))
        draft.replace(out)
    write_bytes(out.with_name(f"{out.name}.txt"), f"{notes}\n".encode())
    return Exported(notes, difference, largest)


@torch.inference_mode()
def compare(encoder: Encoder, theirs: nn.Module) -> tuple[float, float]:
    """The largest difference of the features of the same images, as a share of the largest feature,
    and that. theirs: takes what the encoder's network takes, in eval mode or not."""
    side = encoder.spec.size
    images = torch.rand(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    wanted = encoder(images)
    found = theirs.eval()(encoder.prepared(images)).float()
    if found.shape != wanted.shape:
        return float("inf"), float(wanted.abs().max())
    largest = wanted.abs().max()
    return float((found - wanted).abs().max() / largest.clamp(min=1e-30)), float(largest)


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
            f"WARNING: THIS ENCODER WANTS HIGH-PASS FILTERED IMAGES, AND NO FILTER IS IN THESE "
            f"WEIGHTS. After the normalisation, subtract from every image its Gaussian blur "
            f"(kernel {kernel} px, sigma {sigma:g} px, reflected borders), at training and at test."
        )
    return "\n".join([*lines, FORMATS[layout].usage(encoder)])


def _refuse_stem(config: EncoderConfig, program: str) -> None:
    if config.stem != "imagenet":
        raise UserError(
            f"{program} has no `stem: {config.stem}` (3x3, less pooling): only `imagenet` can be "
            f"exported to it; `--format safetensors` takes any"
        )


def _refuse_width(config: EncoderConfig, program: str) -> None:
    if config.width != _PUBLISHED_WIDTH:
        raise UserError(
            f"{program}'s {config.arch} begins with {_PUBLISHED_WIDTH} channels, this one with "
            f"{config.width}; `--format safetensors` takes any width"
        )


# -------------------------------------------------------------------------------- safetensors


def _accept(config: EncoderConfig, weights: Tensors) -> None:
    """Our own names express everything."""


def _write_own(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    kept = {key: value.contiguous() for key, value in weights.items()}
    save_file(kept, file, metadata={"encoder": json.dumps(asdict(config))})


def _rebuild_own(file: Path, config: EncoderConfig) -> nn.Module:
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["encoder"])
    network = build_encoder(EncoderConfig(**told))
    network.load_state_dict(load_file(file))
    return network


def _use_own(encoder: Encoder) -> str:
    return (
        "to load: salmask.encoders.backbones.build_encoder(EncoderConfig(...)), with the metadata "
        "of the file"
    )


# -------------------------------------------------------------------------------- torchvision


def _refuse_torchvision(config: EncoderConfig, weights: Tensors) -> None:
    if config.arch not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no {config.arch}; `--format safetensors` takes any")
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
    if not timm.is_model(config.arch):
        raise UserError(f"timm has no {config.arch}; `--format safetensors` takes any")
    _refuse_stem(config, "timm")
    _refuse_width(config, "timm")
    with torch.device("meta"):
        theirs = timm.create_model(config.arch, pretrained=False, num_classes=0).state_dict()
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in weights.items()}:
        other = next((key for key in theirs if key not in weights), "sizes")
        raise UserError(
            f"timm's {config.arch} is made of other parts than torchvision's, which this encoder "
            f"is (`{other}`): export it as torchvision"
        )


def _rebuild_timm(file: Path, config: EncoderConfig) -> nn.Module:
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
    """A key of torchvision's ResNets by detectron2's name, as MoCo's converter has it."""
    *layers, tensor = key.split(".")
    place = [_STAGES[layers[0]], layers[1]] if layers[0] in _STAGES else ["stem"]
    part = layers[2:] if layers[0] in _STAGES else layers
    return ".".join([*place, *_PARTS.get(".".join(part), part), tensor])


def _refuse_detectron2(config: EncoderConfig, weights: Tensors) -> None:
    if config.arch not in ("resnet50", "resnet101", "resnet152"):
        raise UserError(
            f"detectron2's C4 models have ResNets of bottlenecks (resnet50, resnet101, resnet152), "
            f"not {config.arch}"
        )
    _refuse_stem(config, "detectron2")


def _write_detectron2(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    named = {detectron2_key(key): value.numpy() for key, value in weights.items()}
    held = {"model": named, "__author__": "salmask", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(held))


def _rebuild_detectron2(file: Path, config: EncoderConfig) -> nn.Module:
    """Our own ResNet with the file's weights: detectron2 need not be installed."""
    found: Mapping[str, np.ndarray] = pickle.loads(file.read_bytes())["model"]  # written just now
    network = build_encoder(config)
    names = {key: detectron2_key(key) for key in network.state_dict()}
    if set(names.values()) != set(found):
        raise UserError("detectron2: two weights have one name")
    network.load_state_dict({key: torch.from_numpy(found[name]) for key, name in names.items()})
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
