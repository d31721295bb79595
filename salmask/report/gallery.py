"""What the masks do to pictures: two views of each image, and every mask on them (Chin, Fig. 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from salmask.data import views
from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD, normalise
from salmask.data.photometry import apply_photometry
from salmask.data.resample import resample
from salmask.filters import high_pass
from salmask.masks import MASKS, LearnedMask
from salmask.masks.options import function_of, input_filter, reads_saliency
from salmask.params.run import RunConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.report.sheets import Column, Tile, grid_sheet
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Pair

_ALWAYS = ("high_pass", "blur", "mean", "mscn", "mixmask", "unmix", "mixmask_star", "erase")
_COLUMNS_A_BAND = 8
_EXTRA = 2  # further views that MSCN takes
_FILTERED_GAIN = 3.0  # high-pass views are faint: what is left of an image is mostly small


@dataclass(frozen=True)
class ShownMask:
    """One group of columns; neighbours of one title share it. guided: whether saliency decides what
    is masked. masker: of a mask that was learned. kind: what stands over a mixed query."""

    title: str
    mask: Choice
    guided: bool = True
    masker: LearnedMask | None = None
    kind: str = "query, mixed"


def masks_of(
    runs: Sequence[RunConfig], maskers: Mapping[str, LearnedMask] | None = None
) -> list[ShownMask]:
    """The masks of the runs and, always, those that need no training; some of them once for each of
    the kinds that they draw by chance.

    A mask with options of its own carries the name of the first run that has it. maskers: by run;
    a mask that is learned is shown where there is one.
    """
    found: dict[str, Choice] = {}
    learned = []
    for run in runs:
        if masker := (maskers or {}).get(run.name):
            learned.append(
                ShownMask(f"{_name(run.mask.name)}\n{run.name}", run.mask, False, masker)
            )
        elif MASKS[run.mask.name].learns or run.mask.name == "none":
            continue
        elif run.mask not in found.values():
            named = _name(run.mask.name)
            found[f"{named}\n{run.name}" if run.mask.options else named] = run.mask
    for name in _ALWAYS:
        found.setdefault(_name(name), Choice(name, {}))
    order = {_name(name): place for place, name in enumerate(_ALWAYS)}
    titles = sorted(found, key=lambda title: order.get(title.partition("\n")[0], len(order)))
    return [shown for title in titles for shown in _kinds(title, found[title])] + learned


def _kinds(title: str, mask: Choice) -> list[ShownMask]:
    if not MASKS[mask.name].kinds:
        return [ShownMask(title, mask, reads_saliency(mask))]
    named = _name(mask.name)
    kinds = {
        kind: Choice(mask.name, {**mask.options, **forced})
        for kind, forced in MASKS[mask.name].kinds.items()
    }
    if mask.name != "high_pass":
        return [ShownMask(title, choice, False, kind=kind) for kind, choice in kinds.items()]
    guided = reads_saliency(mask)
    return [
        ShownMask(title.replace(named, f"{named}, {kind}", 1), choice, guided and kind != "focal")
        for kind, choice in kinds.items()
    ]


def _name(mask: str) -> str:
    return MASKS[mask].label


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
    for branch in views.branch_names(_EXTRA):
        boxes = views.crop_boxes(draws, branch, sizes, view.crop, view.aspect)
        flips = views.flips(draws, branch, view.flip)
        cut = [resample(image, side, box) for image, box in zip(images, boxes, strict=True)]
        pixels = views.flip_images(torch.stack(cut), flips).float() / 255
        seen[branch] = normalise(apply_photometry(pixels, draws, branch, view))
        maps[branch] = store.crop(torch.arange(len(images)), boxes, flips, grid)
    query, key, *extra = seen.values()
    return Pair(query, key, maps["query"], maps["key"], tuple(extra))


def mask_sheet(
    images: Sequence[Image.Image],
    activations: Mapping[int, Tensor],
    view: ViewConfig,
    masks: Sequence[ShownMask],
    *,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
) -> bytes:
    """PNG: a row per image; query and key with their saliency, then per mask what it makes of the
    views, with the foreground's outline where that guides it.

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
    groups: list[tuple[str, list[Column]]] = []
    for mask in masks:
        columns = _columns(mask, pair, draws, view)
        if groups and groups[-1][0] == mask.title:
            groups[-1][1].extend(columns)
        else:
            groups.append((mask.title, columns))
    return grid_sheet(leads, groups, _COLUMNS_A_BAND)


def _columns(shown: ShownMask, pair: Pair, draws: Draws, view: ViewConfig) -> list[Column]:
    filtered = input_filter(shown.mask, view.size) is not None
    if shown.masker is not None:
        with torch.inference_mode():
            masks = shown.masker.eval()(pair.query).unbind(1)
        hidden = [pair.query * (1 - mask[:, None]) for mask in masks]
        return [(f"less mask {n}", _tiles(images, None)) for n, images in enumerate(hidden, 1)]
    masked = function_of(shown.mask)(pair, draws, view.grid)
    threshold = float(shown.mask.options.get("threshold", 0.6))
    query_cells, key_cells = (
        foreground(maps, threshold) if shown.guided and maps is not None else None
        for maps in (pair.query_activation, pair.key_activation)
    )
    columns: list[Column] = []
    if masked.query is not pair.query:
        columns.append(("query", _tiles(masked.query, query_cells, filtered)))
    if _is_masked_key(shown.mask, masked.key, pair.key):
        columns.append(("key", _tiles(masked.key, key_cells, filtered)))
    columns += [("extra view", _tiles(images, None, filtered)) for images in masked.extra]
    columns += [
        ("hard negative", _tiles(images, key_cells, filtered)) for images in masked.negatives
    ]
    columns += [(shown.kind, _tiles(mixed.images, None)) for mixed in masked.mixed]
    return columns


def _is_masked_key(mask: Choice, key: Tensor, unmasked: Tensor) -> bool:
    wanted = input_filter(mask, unmasked.shape[-1])
    if wanted is not None:
        unmasked = high_pass(unmasked, wanted["kernel"], wanted["sigma"])
    return not torch.equal(key, unmasked)


def _tiles(images: Tensor, cells: Tensor | None, filtered: bool = False) -> list[Tile]:
    """One tile per image (B,3,H,W), with the outline of its cells (B,U,V) where there are any."""
    pixels = displayable(images, filtered)
    return [
        Tile(picture.numpy(), cells=None if cells is None else cells[i])
        for i, picture in enumerate(pixels)
    ]


def displayable(images: Tensor, filtered: bool = False) -> Tensor:
    """Normalised views (B,3,H,W) as RGB (B,H,W,3) in [0,1].

    filtered: views without their mean colour; they are shown around mid grey, at a higher contrast.
    """
    spread = torch.tensor(IMAGENET_STD)
    if filtered:
        return (0.5 + _FILTERED_GAIN * spread * images.permute(0, 2, 3, 1)).clamp(0, 1)
    return (torch.tensor(IMAGENET_MEAN) + spread * images.permute(0, 2, 3, 1)).clamp(0, 1)
