"""Saliency of the same photographs on different devices, compared with float32 on a CPU.

    python -m benchmarks.saliency_devices --photos FOLDER [--count 100] [--localizer NAME]
        [-o KEY=VALUE ...] [--save FILE.safetensors] [--beside FILE.safetensors ...]

The rows are this CPU in float32, bfloat16 and (the network only) float64, and a GPU, if there is
one, in float32 and bfloat16. A row shows the largest difference of stored maps and the share of
cells that are foreground in both or in neither. Maps have mean 1; the difference is relative where
a cell is above 1, because float16 stores relative precision. --save writes the float32 maps of this
machine (of the GPU, if there is one) for --beside on another machine. ATEN_CPU_CAPABILITY=default
ONEDNN_MAX_CPU_ISA=SSE41 selects the kernels of a CPU without wide registers."""

from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.backends import cudnn

from salmask.data.decode import decode
from salmask.data.resample import resample
from salmask.devices import Precision, autocast, place
from salmask.params.values import bind, pick
from salmask.saliency.localizers import LOCALIZERS
from salmask.saliency.scda import activation_map, foreground
from salmask.saliency.store_rows import scaled
from salmask.saliency.trunks import Trunk

Maps = dict[str, Tensor]  # level in px -> (N,U,V) float16
_BATCH = 8
_SHARE = 0.999  # of cells on which all devices should agree
_FURTHEST = 1e-3


@torch.inference_mode()
def computed(trunk: Trunk, pixels: Maps, device: str, kind: torch.dtype) -> Maps:
    """The maps of images (N,3,S,S) uint8 per level, as a store holds them."""
    target = torch.device(device)
    held = torch.float64 if kind == torch.float64 else torch.float32
    precision: Precision = "bfloat16" if kind == torch.bfloat16 else "float32"
    place(trunk, target).to(held)
    raw: dict[int, Tensor] = {}
    for level, images in pixels.items():
        result = []
        for part in images.split(_BATCH):
            ready = (part.to(target).to(held) / 255).contiguous(memory_format=torch.channels_last)
            with autocast(target, precision), cudnn.flags(enabled=True, allow_tf32=False):
                result.append(activation_map(trunk(ready)).cpu())
        raw[int(level)] = torch.cat(result)
    known = torch.ones(len(images), 32, dtype=torch.uint8)
    return {str(level): maps for level, maps in scaled(raw, known).activation.items()}


def compared(a: Maps, b: Maps) -> tuple[float, float]:
    """The largest difference, and the share of cells that are foreground in both or in neither."""
    furthest, alike = 0.0, []
    for level in a:
        x, y = a[level].float(), b[level].float()
        furthest = max(furthest, ((x - y).abs() / x.abs().clamp(min=1)).max().item())
        alike.append((foreground(x) == foreground(y)).flatten())
    return furthest, torch.cat(alike).float().mean().item()


@click.command()
@click.option("--photos", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--count", default=100, show_default=True)
@click.option("--levels", default="224,320,448", show_default=True)
@click.option("--localizer", default="lite0", show_default=True)
@click.option("-o", "--option", "options", multiple=True, help="KEY=VALUE of the localizer.")
@click.option("--save", type=click.Path(path_type=Path))
@click.option("--beside", multiple=True, type=click.Path(exists=True, path_type=Path))
def main(
    photos: Path,
    count: int,
    levels: str,
    localizer: str,
    options: tuple[str, ...],
    save: Path | None,
    beside: tuple[Path, ...],
) -> None:
    """Prints a table that compares each kind with float32 on this CPU."""
    chosen = dict(option.split("=", 1) for option in options)
    find = pick(LOCALIZERS, localizer, "--localizer")
    spec, tensors = find(**bind(find, chosen, "-o"))
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    trunk.eval()
    sides = [int(side) for side in levels.split(",")]
    files = sorted(photos.rglob("*.jpg"))[:count]
    images = [decode(path, max(sides)) for path in files]
    pixels = {str(n): torch.stack([resample(image, (n, n)) for image in images]) for n in sides}
    kinds = {
        "CPU, float64": ("cpu", torch.float64),
        "CPU, bfloat16": ("cpu", torch.bfloat16),
    }
    if torch.cuda.is_available():
        kinds["GPU, float32"] = ("cuda", torch.float32)
        kinds["GPU, bfloat16"] = ("cuda", torch.bfloat16)
    first = computed(trunk, pixels, "cpu", torch.float32)
    kept = first
    print(f"{localizer}, {len(files)} images at {levels} px, beside this CPU's float32 "
          f"(goal: {_FURTHEST}, {_SHARE:.1%})", flush=True)  # fmt: skip

    def tell(name: str, result: Maps) -> None:
        furthest, share = compared(first, result)
        print(f"{name}: {furthest:.1e}, equal foreground {share:.4%}", flush=True)

    for name, kind in kinds.items():
        result = computed(trunk, pixels, *kind)
        tell(name, result)
        if name == "GPU, float32":
            kept = result
    for path in beside:
        tell(path.name, load_file(path))
    if save:
        save_file(kept, save)


if __name__ == "__main__":
    main()
