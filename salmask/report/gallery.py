"""A figure with two views of each image and every mask on them (as in Chin et al. 2024, Fig. 3)."""

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

# The order of the masks; masks that are not listed follow.
_ORDER = ("high_pass", "blur", "mean", "mscn", "mixmask", "unmix", "mixmask_star", "erase")
_COLUMNS_PER_BAND = 8
_EXTRA_VIEWS = 2  # the most that a mask uses
_FILTERED_GAIN = 3.0  # contrast of high-pass filtered views, which are faint


@dataclass(frozen=True)
class ShownMask:
    """A mask of the figure.

    Args:
        title: label of the mask and, in a second line, the name of its run.
        mask: name and options.
        kind: name of one kind of a mask that is drawn at random, or "".
        outlined: whether the foreground is outlined, because it decides what is masked.
        masker: the trained module of a learned mask.
    """

    title: str
    mask: Choice
    kind: str = ""
    outlined: bool = True
    masker: LearnedMask | None = None

    @property
    def title_with_kind(self) -> str:
        """The title, with the kind behind the label."""
        label, *run = self.title.split("\n")
        return "\n".join([f"{label}, {self.kind}" if self.kind else label, *run])


def masks_of(
    runs: Sequence[RunConfig], maskers: Mapping[str, LearnedMask] | None = None
) -> list[ShownMask]:
    """The masks of the runs, and all other masks that need no training.

    A mask that draws its kind at random is listed once per kind. A mask with options has the name
    of the first run that uses it in its title.

    Args:
        runs: the runs; their learned masks are listed if `maskers` has them.
        maskers: run -> trained module of its mask.
    """
    choices: dict[str, Choice] = {}
    learned = []
    for run in runs:
        mask = MASKS[run.mask.name]
        if masker := (maskers or {}).get(run.name):
            title = f"{mask.label}\n{run.name}"
            learned.append(ShownMask(title, run.mask, outlined=False, masker=masker))
        elif not mask.learns and run.mask.name != "none" and run.mask not in choices.values():
            choices[f"{mask.label}\n{run.name}" if run.mask.options else mask.label] = run.mask
    for name, mask in MASKS.items():
        if not mask.learns and name != "none":
            choices.setdefault(mask.label, Choice(name, {}))
    order = {name: place for place, name in enumerate(_ORDER)}
    titles = sorted(choices, key=lambda title: order.get(choices[title].name, len(order)))
    return [shown for title in titles for shown in _kinds(title, choices[title])] + learned


def _kinds(title: str, choice: Choice) -> list[ShownMask]:
    kinds = MASKS[choice.name].kinds or {"": {}}
    return [
        ShownMask(
            title,
            Choice(choice.name, {**choice.options, **options}),
            kind,
            reads_saliency(choice) and kind != "focal",  # a focal mask has a fixed place
        )
        for kind, options in kinds.items()
    ]


def pair_of(
    images: Sequence[Image.Image], activations: Mapping[int, Tensor], view: ViewConfig, draws: Draws
) -> Pair:
    """The views of each image, as they are drawn in training.

    Args:
        images: whole images.
        activations: level in px -> (B,Us,Vs) float32 maps of the whole images.
        view: the section `view`.
        draws: random numbers of the images.
    """
    sizes = torch.tensor([(image.height, image.width) for image in images])
    store = SaliencyStore({}, activations)
    side, grid = (view.size, view.size), (view.grid, view.grid)
    pixels, maps = {}, {}
    for branch in views.branch_names(_EXTRA_VIEWS):
        boxes = views.crop_boxes(draws, branch, sizes, view.crop, view.aspect)
        flips = views.flips(draws, branch, view.flip)
        crops = [resample(image, side, box) for image, box in zip(images, boxes, strict=True)]
        flipped = views.flip_images(torch.stack(crops), flips).float() / 255
        pixels[branch] = normalise(apply_photometry(flipped, draws, branch, view))
        maps[branch] = store.crop(torch.arange(len(images)), boxes, flips, grid)
    query, key, *extra = pixels.values()
    return Pair(query, key, maps["query"], maps["key"], tuple(extra))


def mask_sheet(
    images: Sequence[Image.Image],
    activations: Mapping[int, Tensor],
    view: ViewConfig,
    masks: Sequence[ShownMask],
    *,
    seed: int = 0,
    ids: Tensor | None = None,
) -> bytes:
    """PNG with a row per image: query and key with their saliency, then the views of each mask.

    Args:
        images: whole images.
        activations: level in px -> (B,Us,Vs) float32 maps of the whole images.
        view: the section `view`.
        masks: the masks to draw.
        seed: seed of the random numbers, which are those of the first epoch of a training.
        ids: (B,) int64, rows in the manifest; 0, 1, ... by default.
    """
    draws = Draws.of(seed, 0, torch.arange(len(images)) if ids is None else ids)
    pair = pair_of(images, activations, view, draws)
    leads = []
    for title, pixels, maps in (
        ("query", pair.query, pair.query_activation),
        ("key", pair.key, pair.key_activation),
    ):
        assert maps is not None
        cells = foreground(maps)
        rgb = displayable(pixels)
        leads.append((title, [Tile(image.numpy()) for image in rgb]))
        tiles = [Tile(p.numpy(), m, c) for p, m, c in zip(rgb, maps, cells, strict=True)]
        leads.append(("its saliency", tiles))
    groups: list[tuple[str, list[Column]]] = []
    for mask in masks:
        title, columns = mask.title_with_kind, _columns(mask, pair, draws, view)
        if mask.kind and len(columns) == 1:  # one group for all kinds of the mask
            title, columns = mask.title, [(mask.kind, columns[0][1])]
        if groups and groups[-1][0] == title:
            groups[-1][1].extend(columns)
        else:
            groups.append((title, columns))
    return grid_sheet(leads, groups, _COLUMNS_PER_BAND)


def _columns(shown: ShownMask, pair: Pair, draws: Draws, view: ViewConfig) -> list[Column]:
    if shown.masker is not None:
        with torch.inference_mode():
            masks = shown.masker.eval()(pair.query).unbind(1)
        remaining = [pair.query * (1 - mask[:, None]) for mask in masks]
        return [(f"without mask {n}", _tiles(images)) for n, images in enumerate(remaining, 1)]
    masked = function_of(shown.mask)(pair, draws, view.grid)
    filtered = input_filter(shown.mask, view.size) is not None
    threshold = float(shown.mask.options.get("threshold", 0.6))
    query_cells, key_cells = (
        foreground(maps, threshold) if shown.outlined and maps is not None else None
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
    return columns + [("query, mixed", _tiles(mixed.images)) for mixed in masked.mixed]


def _is_masked_key(mask: Choice, key: Tensor, unmasked: Tensor) -> bool:
    """Whether the key is masked, and not only filtered."""
    options = input_filter(mask, unmasked.shape[-1])
    if options is not None:
        unmasked = high_pass(unmasked, options["kernel"], options["sigma"])
    return not torch.equal(key, unmasked)


def _tiles(images: Tensor, cells: Tensor | None = None, filtered: bool = False) -> list[Tile]:
    """One tile per image (B,3,H,W), with the outline of its cells (B,U,V) if there are any."""
    return [
        Tile(image.numpy(), cells=None if cells is None else cells[i])
        for i, image in enumerate(displayable(images, filtered))
    ]


def displayable(images: Tensor, filtered: bool = False) -> Tensor:
    """Normalised views (B,3,H,W) as RGB (B,H,W,3) in [0,1].

    filtered: the views are high-pass filtered, and are shown around mid grey with more contrast.
    """
    scale = torch.tensor(IMAGENET_STD)
    if filtered:
        return (0.5 + _FILTERED_GAIN * scale * images.permute(0, 2, 3, 1)).clamp(0, 1)
    return (torch.tensor(IMAGENET_MEAN) + scale * images.permute(0, 2, 3, 1)).clamp(0, 1)
