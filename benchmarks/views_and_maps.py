"""The localizer's maps of photographs and of random crops of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from salmask.data.decode import decode
from salmask.data.photometry import apply_photometry
from salmask.data.resample import resample
from salmask.data.views import crop_boxes
from salmask.devices import autocast
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.report import sheets
from salmask.saliency.scda import activation_map
from salmask.saliency.trunks import Trunk

LEVELS = (224, 320, 448)
VIEWS = 4
BORDER = 64  # px of reflection around a level
_BATCH = 32


@dataclass(frozen=True)
class ViewMaps:
    """A localizer for pixels in [0,255], with its default precision."""

    trunk: Trunk
    device: torch.device
    precision: str = "float32"

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, precision: str | None = None) -> Tensor:
        """(n,3,S,S) in [0,255] -> activation maps (n,U,V) float32."""
        result = []
        for part in pixels.split(_BATCH):
            images = part.to(self.device).float() / 255
            with autocast(self.device, precision or self.precision):  # type: ignore[arg-type]
                features = self.trunk(images.contiguous(memory_format=torch.channels_last))
            result.append(activation_map(features).cpu())
        return torch.cat(result)


@dataclass(frozen=True)
class Measured:
    """n views of N images. ids: (n,). boxes: (n,4). own, coloured, flipped, bfloat16: (n,U,V), the
    maps of the views; with colours augmented; mirrored there and back; in low precision. levels,
    reflected, mirrored: level in px -> (N,Us,Vs), maps of whole images. seconds: per image and
    level. Fields that only the full table needs may be None or empty."""

    paths: Sequence[Path]
    ids: Tensor
    boxes: Tensor
    own: Tensor
    coloured: Tensor
    flipped: Tensor | None
    bfloat16: Tensor | None
    levels: dict[int, Tensor]
    reflected: dict[int, Tensor]
    mirrored: dict[int, Tensor]
    seconds: dict[int, float]

    @property
    def grid(self) -> tuple[int, int]:
        return int(self.own.shape[1]), int(self.own.shape[2])

    def sheet(self, cached: Tensor, images: int = 12) -> bytes:
        """PNG: views of some images, with the view's own map and with the cached one."""
        groups: list[tuple[str, list[tuple[Image.Image, Tensor]]]] = []
        for image in range(0, len(self.paths), max(1, len(self.paths) // images)):
            view = int(torch.nonzero(self.ids == image)[len(groups) % VIEWS, 0])
            pixels = resample(decode(self.paths[image]), (LEVELS[0],) * 2, self.boxes[view])
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            pair = [(picture, self.own[view]), (picture, cached[view])]
            groups.append((f"{self.paths[image].stem}: own, cached", pair))
        return sheets.overlays(groups)


def measure(network: ViewMaps, paths: Sequence[Path], everything: bool = True) -> Measured:
    """Runs the localizer for all rows of the table, or for its main rows only."""
    images = [decode(path) for path in paths]
    sizes = torch.tensor([(image.height, image.width) for image in images])
    side, count, config = LEVELS[0], len(images), ViewConfig()
    every, boxes = torch.arange(count), []
    maps: dict[str, list[Tensor]] = {"own": [], "coloured": [], "flipped": [], "bfloat16": []}
    for epoch in range(VIEWS):
        draws = Draws.of(7, epoch, every)
        boxes.append(crop_boxes(draws, "query", sizes, config.crop, config.aspect))
        views = _stacked(images, side, boxes[-1])
        maps["own"].append(network(views))
        maps["coloured"].append(
            network(apply_photometry(views / 255, draws, "query", config) * 255)
        )
        if everything:
            maps["flipped"].append(network(views.flip(-1)).flip(-1))
            maps["bfloat16"].append(network(views, "bfloat16"))
    levels, reflected, mirrored, seconds = {}, {}, {}, {}
    for level in LEVELS:
        whole = _stacked(images, level)
        start = time.perf_counter()
        levels[level] = network(whole)
        seconds[level] = (time.perf_counter() - start) / count
        if not everything:
            continue
        mirrored[level] = levels[level] + network(whole.flip(-1)).flip(-1)
        wide = network(F.pad(whole, (BORDER,) * 4, mode="reflect"))
        cut = BORDER * levels[level].shape[1] // level
        reflected[level] = wide[:, cut:-cut, cut:-cut]
    parts = {name: torch.cat(result) if result else None for name, result in maps.items()}
    return Measured(
        paths,
        every.repeat(VIEWS),
        torch.cat(boxes),
        levels=levels,
        reflected=reflected,
        mirrored=mirrored,
        seconds=seconds,
        **parts,  # type: ignore[arg-type]
    )


def _stacked(images: Sequence[Image.Image], side: int, boxes: Tensor | None = None) -> Tensor:
    result = [
        resample(image, (side, side), None if boxes is None else boxes[i])
        for i, image in enumerate(images)
    ]
    return torch.stack(result).float()
