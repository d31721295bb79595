"""Export of encoders to the weights files of other programs.

The file uses the other program's names. It is read back into that program's network, whose features
are compared with the encoder's. A text file next to it describes the input, because weights contain
neither normalisation nor input filter.
"""

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from salmask.encoders import on_disk as encoder_file
from salmask.encoders import weight_files
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


def _write_tensors(
    weights: Tensors, config: EncoderConfig, file: Path, metadata: dict[str, str] | None = None
) -> None:
    kept = {key: value.contiguous() for key, value in weights.items()}
    if file.suffix == ".safetensors":
        save_file(kept, file, metadata)
    else:
        torch.save(kept, file)


def _read_tensors(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    return weight_files.read(file)


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        suffixes: of its files.
        network: architecture -> the other program's network, with random weights. Raises UserError
            for an architecture that the format does not support.
        usage: how to load the file, a template for `str.format`.
        write: (weights, architecture, file) -> None.
        read: (file, names of the weights) -> the weights.
    """

    suffixes: tuple[str, ...]
    network: Callable[[EncoderConfig], nn.Module]
    usage: str
    write: Callable[[Tensors, EncoderConfig, Path], None] = _write_tensors
    read: Callable[[Path, Iterable[str]], dict[str, Tensor]] = _read_tensors


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
    theirs = chosen.network(encoder.config)
    check_weights(theirs, weights, f"{layout}'s {encoder.config.arch}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as place:
        draft = Path(place) / out.name
        chosen.write(weights, encoder.config, draft)
        theirs.load_state_dict(chosen.read(draft, weights))
        difference, largest = compare(encoder, theirs)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{layout}'s {encoder.config.arch} with these weights has other features: they "
                f"differ by {difference:.1e} of the largest; nothing was written"
            )
        notes = _notes(encoder, layout, file_digest(folder / "encoder.safetensors"))
        draft.replace(out)
    write_bytes(out.with_name(f"{out.name}.txt"), f"{notes}\n".encode())
    return Exported(notes, difference, largest)


def check_weights(theirs: nn.Module, weights: Tensors, name: str) -> None:
    """Raises UserError unless the network has weights of the same names and shapes. name: of the
    network, for messages."""
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    if shapes != {key: value.shape for key, value in weights.items()}:
        other = next((key for key in shapes if key not in weights), "sizes")
        raise UserError(
            f"{name} differs from torchvision's, which this encoder has (`{other}`): export it as "
            "torchvision"
        )


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
    others = theirs.eval()(encoder.spec.prepared(images)).float()
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
    usage = FORMATS[layout].usage.format(
        arch=config.arch,
        head=head_name(config),
        depth=config.arch.removeprefix("resnet"),
        width=config.width,
        outputs=4 * config.width,
        mean=[round(255 * value, 3) for value in spec.mean],
        std=[round(255 * value, 3) for value in spec.std],
    )
    return "\n".join([*lines, usage])


# ----------------------------------------------------------------------- networks of each program


def _require_published_stem(config: EncoderConfig, program: str) -> None:
    if config.stem != "imagenet":
        raise UserError(
            f"{program} has no `stem: {config.stem}` (3x3, less pooling), only `imagenet`; "
            f"`--format safetensors` supports all stems"
        )


def _require_published_width(config: EncoderConfig, program: str) -> None:
    if config.width != _PUBLISHED_WIDTH:
        raise UserError(
            f"{program}'s {config.arch} starts with {_PUBLISHED_WIDTH} channels, this one with "
            f"{config.width}; `--format safetensors` supports all widths"
        )


def _torchvision(config: EncoderConfig) -> nn.Module:
    import torchvision  # here and below: imports of libraries that take seconds

    if config.arch not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no {config.arch}; `--format safetensors` supports it")
    if config.arch.startswith("mnasnet"):
        raise UserError(f"torchvision's {config.arch} loads no state that has only tensors")
    _require_published_stem(config, "torchvision")
    _require_published_width(config, "torchvision")
    network: nn.Module = torchvision.models.get_model(config.arch, weights=None)
    network.set_submodule(head_name(config), nn.Identity())
    return network


def _timm(config: EncoderConfig) -> nn.Module:
    import timm

    if not timm.is_model(config.arch):
        raise UserError(f"timm has no {config.arch}; `--format safetensors` supports it")
    _require_published_stem(config, "timm")
    _require_published_width(config, "timm")
    network: nn.Module = timm.create_model(config.arch, pretrained=False, num_classes=0)
    return network


def _detectron2(config: EncoderConfig) -> nn.Module:
    """Our own ResNet: detectron2 need not be installed."""
    if config.arch not in ("resnet50", "resnet101", "resnet152"):
        raise UserError(
            f"detectron2's C4 models support ResNets with bottleneck blocks (resnet50, resnet101, "
            f"resnet152), not {config.arch}"
        )
    _require_published_stem(config, "detectron2")
    return build_encoder(config)


def _write_with_config(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    _write_tensors(weights, config, file, {"encoder": json.dumps(asdict(config))})


def _write_detectron2(weights: Tensors, config: EncoderConfig, file: Path) -> None:
    named = {detectron2_key(key): value.numpy() for key, value in weights.items()}
    content = {"model": named, "__author__": "salmask", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content))


def _read_detectron2(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    arrays = pickle.loads(file.read_bytes())["model"]  # written by `export` itself
    return {name: torch.from_numpy(arrays[detectron2_key(name)]) for name in names}


def detectron2_key(key: str) -> str:
    """Translates a key of torchvision's ResNets to detectron2's name, as MoCo's converter does."""
    if not key.startswith("layer"):
        key = f"stem.{key}"
    for number in (1, 2, 3, 4):
        key = key.replace(f"layer{number}", f"res{number + 1}")
        key = key.replace(f"bn{number}", f"conv{number}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


FORMATS = {
    "torchvision": Format(
        (".pth", ".safetensors"),
        _torchvision,
        "to load: network = torchvision.models.get_model({arch!r}); "
        "network.set_submodule({head!r}, torch.nn.Identity()); network.load_state_dict(...)",
    ),
    "timm": Format(
        (".pth", ".safetensors"),
        _timm,
        "to load: timm.create_model({arch!r}, num_classes=0, checkpoint_path=...)",
    ),
    "detectron2": Format(
        (".pkl",),
        _detectron2,
        "to load, in the config (images in RGB order and 0 to 255; stride in the 3x3):\n"
        "MODEL:\n  WEIGHTS: this file\n  PIXEL_MEAN: {mean}\n  PIXEL_STD: {std}\n"
        "  RESNETS: {{DEPTH: {depth}, STRIDE_IN_1X1: False, STEM_OUT_CHANNELS: {width}, "
        "RES2_OUT_CHANNELS: {outputs}, WIDTH_PER_GROUP: {width}}}\n"
        'INPUT: {{FORMAT: "RGB"}}',
        _write_detectron2,
        _read_detectron2,
    ),
    "safetensors": Format(
        (".safetensors",),
        build_encoder,
        "to load: salmask.encoders.backbones.build_encoder(EncoderConfig(...)), with the metadata "
        "of the file",
        _write_with_config,
    ),
}
