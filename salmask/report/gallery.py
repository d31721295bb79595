"""What the masks do to pictures: two views of each image, and every mask on them (Chin, Fig. 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from salmask.config import Choice, RunConfig, ViewConfig
from salmask.data import views
from salmask.data.images import resample
from salmask.data.loader import mirror
from salmask.masks import strategies
from salmask.randomness import Draws
from salmask.report.papers import MASK_NAMES
from salmask.report.sheets import Tile, grid_sheet
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Pair

_ALWAYS = ("high_pass", "blur", "mean")
_GROUPS_A_BAND = 3
_FILTERED_GAIN = 3.0  # high-pass views are faint: what is left of an image is mostly small


@dataclass(frozen=True)
class Shown:
    """One group of columns. guided: whether saliency decides what is masked."""

    title: str
    mask: Choice
    guided: bool = True


def masks_of(runs: Sequence[RunConfig]) -> list[Shown]:
    """The masks of the runs and, always, the paper's three; high-pass once for each of its kinds.

    A mask with options of its own carries the name of the first run that has it.
    """
    found: dict[str, Choice] = {}
    for run in runs:
        if run.mask.name != "none" and run.mask not in found.values():
            named = _name(run.mask.name)
            found[f"{named}\n{run.name}" if run.mask.options else named] = run.mask
    for name in _ALWAYS:
        found.setdefault(_name(name), Choice(name, {}))
    order = {_name(name): place for place, name in enumerate(_ALWAYS)}
    titles = sorted(found, key=lambda title: order.get(title, len(order)))
    return [shown for title in titles for shown in _kinds(title, found[title])]


def _kinds(title: str, mask: Choice) -> list[Shown]:
    if mask.name != "high_pass":
        return [Shown(title, mask)]

    named = _name(mask.name)

    def forced(kind: str, guided: bool = True, **chances: float) -> Shown:
        return Shown(
            title.replace(named, f"{named}, {kind}", 1),
            Choice(mask.name, {**mask.options, **chances}),
            guided,
        )

    return [
        forced("spatial", focal=0.0, channel=0.0),
        forced("per channel", focal=0.0, channel=1.0),
        forced("focal", guided=False, focal=1.0),
    ]


def _name(mask: str) -> str:
    return MASK_NAMES.get(mask, mask)


def pair_of(
    images: Sequence[Image.Image], activations: Mapping[int, Tensor], view: ViewConfig, draws: Draws
) -> Pair:
    """The two views of each image, as training draws them.

    activations: level in px -> (B,Us,Vs) maps of the whole images.
    """
    sizes = torch.tensor([(image.height, image.width) for image in images])
    store = SaliencyStore({}, activations)
    side, grid = (view.size, view.size), (view.grid, view.grid)
    seen, maps = {}, {}
    for branch in ("query", "key"):
        boxes = views.crop_boxes(draws, branch, sizes, view.crop, view.aspect)
        flips = views.flips(draws, branch, view.flip)
        cut = [resample(image, side, box) for image, box in zip(images, boxes, strict=True)]
        pixels = mirror(torch.stack(cut), flips).float() / 255
        seen[branch] = views.normalise(views.photometry(pixels, draws, branch, view))
        maps[branch] = store.crop(torch.arange(len(images)), boxes, flips, grid)
    return Pair(seen["query"], seen["key"], maps["query"], maps["key"])


def mask_sheet(
    images: Sequence[Image.Image],
    activations: Mapping[int, Tensor],
    view: ViewConfig,
    masks: Sequence[Shown],
    *,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
) -> bytes:
    """PNG: a row per image; query and key with their saliency, then per mask the masked query
    and the hard negative, with the foreground's outline.

    activations: level in px -> (B,Us,Vs) maps of the whole images. ids: (B,) int64, the rows whose
    random numbers to use (0, 1, ... by default): (seed, epoch, id) gives training's own views.
    """
    draws = Draws.of(seed, epoch, torch.arange(len(images)) if ids is None else ids)
    pair = pair_of(images, activations, view, draws)
    leads = []
    for title, pixels, maps in (
        ("query", pair.query, pair.query_activation),
        ("key", pair.key, pair.key_activation),
    ):
        assert maps is not None
        cells = foreground(maps)
        shown = displayable(pixels)
        leads.append((title, [Tile(picture.numpy()) for picture in shown]))
        heated = [Tile(p.numpy(), m, c) for p, m, c in zip(shown, maps, cells, strict=True)]
        leads.append(("its saliency", heated))
    return grid_sheet(leads, [_group(shown, pair, draws, view) for shown in masks], _GROUPS_A_BAND)


def _group(
    shown: Shown, pair: Pair, draws: Draws, view: ViewConfig
) -> tuple[str, list[tuple[str, list[Tile | None]]]]:
    query, _, negative = strategies.build(shown.mask)(pair, draws, view.grid)
    filtered = shown.mask.name in strategies.FILTERED
    threshold = float(shown.mask.options.get("threshold", 0.6))
    return shown.title, [
        ("query", _tiles(query, pair.query_activation, shown.guided, threshold, filtered)),
        ("hard negative", _tiles(negative, pair.key_activation, shown.guided, threshold, filtered)),
    ]


def _tiles(
    images: Tensor | None,
    maps: Tensor | None,
    guided: bool,
    threshold: float,
    filtered: bool,
) -> list[Tile | None]:
    assert maps is not None
    if images is None:
        return [None] * len(maps)
    cells = foreground(maps, threshold)
    pixels = displayable(images, filtered)
    return [
        Tile(p.numpy(), cells=c if guided else None) for p, c in zip(pixels, cells, strict=True)
    ]


def displayable(images: Tensor, filtered: bool = False) -> Tensor:
    """Normalised views (B,3,H,W) as RGB (B,H,W,3) in [0,1].

    filtered: views without their mean colour; they are shown around mid grey, at a higher contrast.
    """
    spread = torch.tensor(views.IMAGENET_STD)
    if filtered:
        return (0.5 + _FILTERED_GAIN * spread * images.permute(0, 2, 3, 1)).clamp(0, 1)
    return (torch.tensor(views.IMAGENET_MEAN) + spread * images.permute(0, 2, 3, 1)).clamp(0, 1)
