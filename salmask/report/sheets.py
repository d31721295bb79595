"""Sheets of images as PNG bytes: saliency overlays, nearest neighbours, masked views.

The functions take decoded images and tensors, so that they need no manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from salmask.report.figures import DPI, FAINT, INK, new_figure, png
from salmask.saliency.scda import foreground

WIDTH = 1680  # px, of every sheet
RIGHT, WRONG = "#1f9d78", "#d9592b"
_TITLE, _LINE = 34, 27  # px of a heading and of a line of small text
_GAP = 8
_TOP = 6  # px above the first heading

Extent = tuple[float, float, float, float]  # x, y, w, h in px of the sheet, y downwards


@dataclass(frozen=True)
class Neighbour:
    """An image near a query.

    Args:
        row: of the image in the manifest.
        image: the image.
        cosine: of the features of image and query.
        same_class: whether image and query have the same class; None without labels.
    """

    row: int
    image: Image.Image
    cosine: float
    same_class: bool | None


@dataclass(frozen=True)
class Query:
    """An image with the images that are nearest to it.

    Args:
        title: class of the image, or "".
        row: of the image in the manifest.
        image: the image.
        neighbours: the nearest images, beginning with the nearest one.
    """

    title: str
    row: int
    image: Image.Image
    neighbours: Sequence[Neighbour]


class Sheet:
    """A canvas on which images are drawn at exact places in px."""

    def __init__(self, height: float) -> None:
        self.figure = new_figure((WIDTH / DPI, round(height) / DPI))
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set_axis_off()
        self.height = round(height)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Draws text with its top left corner at (x, y). Dollar signs start no formula."""
        defaults: dict[str, Any] = {"color": INK, "size": 8.5, "va": "top", "ha": "left"}
        self.axes.text(x, y, text, parse_math=False, **(defaults | style))

    def image(self, x: float, y: float, side: float, pixels: NDArray[Any]) -> Extent:
        """Draws (H,W,3) pixels, scaled to fit a square and centred in it. Returns their place."""
        high, wide = pixels.shape[:2]
        scale = side / max(high, wide)
        w, h = wide * scale, high * scale
        place = (x + (side - w) / 2, y + (side - h) / 2, w, h)
        self.axes.imshow(pixels, extent=_limits(place), aspect="auto")
        return place

    def pixels(self, place: Extent, pixels: NDArray[Any]) -> None:
        """Draws (H,W,3) or (H,W,4) pixels at a place, without smoothing."""
        self.axes.imshow(pixels, extent=_limits(place), interpolation="nearest", aspect="auto")

    def heat(self, place: Extent, activation: Tensor) -> None:
        """Draws an activation map (U,V) over an image, cell by cell."""
        self.axes.imshow(
            activation.numpy(),
            extent=_limits(place),
            cmap="inferno",
            alpha=0.6,
            interpolation="nearest",
            aspect="auto",
        )

    def outline(self, place: Extent, cells: Tensor, width: float = 1.2) -> None:
        """Draws the border of the True cells of (U,V), in white on black.

        width: in points; less for small cells.
        """
        from matplotlib.collections import LineCollection

        x, y, w, h = place
        width = max(0.4, min(width, h / cells.shape[0] / 22))
        lines = _borders(cells, (x + 2.5, y + 2.5, w - 5, h - 5))  # inside the image
        for colour, extra in (("black", width), ("white", 0.0)):
            self.axes.add_collection(LineCollection(lines, colors=colour, lw=width + extra))

    def frame(self, place: Extent, colour: str, dashed: bool) -> None:
        """Draws a frame inside an image."""
        from matplotlib.patches import Rectangle

        x, y, w, h = place
        style = (0, (2.5, 1.5)) if dashed else "-"
        box = Rectangle((x + 2.5, y + 2.5), w - 5, h - 5, fill=False, ec=colour, lw=2.6, ls=style)
        self.axes.add_patch(box)

    def png(self) -> bytes:
        """The sheet as PNG bytes."""
        self.axes.set(xlim=(0, WIDTH), ylim=(self.height - _TOP, -_TOP))
        return png(self.figure)


def overlays(groups: Sequence[tuple[str, Sequence[tuple[Image.Image, Tensor]]]]) -> bytes:
    """PNG with each image as it is, and with its map and the outline of its foreground (Eq. 1).

    Args:
        groups: (title, [(image, activation map (U,V) float32), ...]); two groups per row.
    """
    per_group = max(len(items) for _, items in groups)
    half = (WIDTH - 3 * _GAP) / 2
    side = (half - (3 * per_group - 1) * _GAP / 2) / (2 * per_group)
    tall = side + _TITLE + 2 * _GAP
    sheet = Sheet(-(-len(groups) // 2) * tall)
    for i, (title, items) in enumerate(groups):
        left, top = i % 2 * (half + 3 * _GAP), i // 2 * tall
        sheet.text(left, top, _short(title), size=9.5)
        for j, (image, activation) in enumerate(items):
            x = left + j * (2 * side + 1.5 * _GAP)
            sheet.image(x, top + _TITLE, side, np.asarray(image))
            place = sheet.image(x + side + _GAP / 2, top + _TITLE, side, np.asarray(image))
            sheet.heat(place, activation)
            sheet.outline(place, foreground(activation[None])[0])
    return sheet.png()


def neighbours(queries: Sequence[Query]) -> bytes:
    """PNG with query images, each followed by its neighbours and their cosines.

    Two queries are side by side. Frames show whether a neighbour has the class of the query, if
    there are labels.
    """
    most = max(len(query.neighbours) for query in queries)
    half = (WIDTH - 4 * _GAP) / 2
    side = (half - (most + 2) * _GAP) / (most + 1)
    tall = side + _TITLE + _LINE + 2 * _GAP
    sheet = Sheet(-(-len(queries) // 2) * tall)
    for i, query in enumerate(queries):
        left, top = i % 2 * (half + 4 * _GAP), i // 2 * tall
        sheet.text(left, top, _short(query.title), size=9.5)
        sheet.image(left, top + _TITLE, side, np.asarray(query.image))
        for j, neighbour in enumerate(query.neighbours):
            x = left + side + 3 * _GAP + j * (side + _GAP)
            place = sheet.image(x, top + _TITLE, side, np.asarray(neighbour.image))
            colour = INK
            if neighbour.same_class is not None:
                colour = RIGHT if neighbour.same_class else WRONG
                sheet.frame(place, colour, dashed=not neighbour.same_class)
            under = top + _TITLE + side + 5
            sheet.text(x + side / 2, under, f"{neighbour.cosine:.2f}", ha="center", color=colour)
    return sheet.png()


def grid_sheet(
    leads: Sequence["Column"], groups: Sequence[tuple[str, Sequence["Column"]]], per_band: int
) -> bytes:
    """PNG with a table of tiles, broken into bands where there are many columns.

    Args:
        leads: the first columns of every band.
        groups: (title, columns) of columns that stay together; a title may have two lines.
        per_band: number of columns in a band without the leads.
    """
    bands: list[list[tuple[str, Sequence[Column]]]] = [[]]
    for group in groups:
        if bands[-1] and sum(len(c) for _, c in [*bands[-1], group]) > per_band:
            bands.append([])
        bands[-1].append(group)
    rows = len(leads[0][1])
    widest = max(sum(len(columns) for _, columns in band) for band in bands)
    inner = WIDTH - 3 * _GAP * max(len(band) for band in bands)
    side = min(inner / (len(leads) + widest) - _GAP / 2, 190.0)
    lines = max([1, *(1 + title.count("\n") for title, _ in groups)])
    under = lines * _LINE + _GAP  # distance of the column titles from the top of the band
    tall = under + _LINE + _GAP + rows * (side + _GAP / 2) + 3 * _GAP
    sheet = Sheet(len(bands) * tall)
    for b, band in enumerate(bands):
        x, top = 0.0, b * tall
        for title, columns in [("", leads), *band]:
            if title:
                x += 3 * _GAP
                for i, line in enumerate(title.split("\n")):
                    sheet.text(x, top + i * _LINE, _short(line, 32), size=8 if i else 9.5)
                wide = len(columns) * (side + _GAP / 2) - _GAP / 2
                sheet.axes.plot([x, x + wide], [top + under - _GAP + 2] * 2, color=FAINT, lw=1)
            for heading, tiles in columns:
                sheet.text(x, top + under, heading)
                for row, tile in enumerate(tiles):
                    y = top + under + _LINE + _GAP + row * (side + _GAP / 2)
                    _put(sheet, tile, x, y, side)
                x += side + _GAP / 2
    return sheet.png()


@dataclass(frozen=True)
class Tile:
    """One image of a grid sheet.

    Args:
        pixels: (H,W,3).
        heat: (U,V) activation map to draw over it.
        cells: (U,V) bool, cells to outline.
    """

    pixels: NDArray[Any]
    heat: Tensor | None = None
    cells: Tensor | None = None


Column = tuple[str, Sequence[Tile]]  # a heading, and a tile for every row


def _put(sheet: Sheet, tile: Tile, x: float, y: float, side: float) -> None:
    place = sheet.image(x, y, side, tile.pixels)
    if tile.heat is not None:
        sheet.heat(place, tile.heat)
    if tile.cells is not None:
        sheet.outline(place, tile.cells, width=0.8)


def _limits(place: Extent) -> Extent:
    """The `extent` of imshow: left, right, bottom, top, with y downwards."""
    x, y, w, h = place
    return (x, x + w, y + h, y)


def _borders(cells: Tensor, place: Extent) -> list[list[tuple[float, float]]]:
    """Line segments between True and False cells of (U,V), and between True cells and the edge."""
    x, y, w, h = place
    u, v = cells.shape
    padded = torch.nn.functional.pad(cells.int(), (1, 1, 1, 1))
    across = (padded[1:, 1:-1] != padded[:-1, 1:-1]).nonzero().tolist()  # above row i
    down = (padded[1:-1, 1:] != padded[1:-1, :-1]).nonzero().tolist()  # left of column j

    def at(row: int, column: int) -> tuple[float, float]:
        return x + column * w / v, y + row * h / u

    lines = [[at(i, j), at(i, j + 1)] for i, j in across]
    return lines + [[at(i, j), at(i + 1, j)] for i, j in down]


def _short(title: str, most: int = 60) -> str:
    return title if len(title) <= most else title[: most - 1] + "…"
