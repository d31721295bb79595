"""Histograms of the pixels of views before and after each mask (as in Jing et al. 2022, Fig. 1b
and 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from salmask.filters import high_pass
from salmask.masks.options import function_of, input_filter
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.report.figures import FAINT, INK, WIDTH, format_axes, new_figure, png
from salmask.report.gallery import ShownMask
from salmask.shapes import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS, _PANELS_PER_ROW = 61, 4  # an odd number of bins, so that 0 is in the middle of one
_RANGE, _FILTERED_RANGE = 2.7, 1.2  # of the values on the horizontal axis
_CHANNELS = ("#d0443a", "#2e9c4c", "#3f7fd0")  # red, green, blue


@dataclass(frozen=True)
class Histogram:
    """The distribution of pixel values of one mask's views.

    Args:
        title: of the mask.
        limit: values are counted from -limit to limit; larger ones are in the outermost bins.
        before: (3,bins), share of the pixels of each channel before the mask, in percent.
        after: the same after the mask.
    """

    title: str
    limit: float
    before: Tensor
    after: Tensor


def of_mask(shown: ShownMask, pair: Pair, draws: Draws, view: ViewConfig) -> Histogram:
    """The histograms of the query before and after a mask.

    A mask that leaves the query as it is has its mixed queries counted instead, and a learned mask
    the views without each of its masks. Before the mask, views are filtered if the mask filters.
    """
    before = pair.query
    if shown.masker is not None:
        with torch.inference_mode():
            masks = shown.masker.eval()(before).unbind(1)
        after = torch.cat([before * (1 - mask[:, None]) for mask in masks])
        return _histogram(shown, before, after, _RANGE)
    masked = function_of(shown.mask)(pair, draws, view.grid)
    options = input_filter(shown.mask, view.size)
    if options is not None:
        before = high_pass(before, options["kernel"], options["sigma"])
    after = masked.query
    if masked.mixed:
        after = torch.cat([mixed.images for mixed in masked.mixed])
    return _histogram(shown, before, after, _RANGE if options is None else _FILTERED_RANGE)


def draw(pair: Pair, draws: Draws, view: ViewConfig, masks: Sequence[ShownMask]) -> bytes:
    """PNG with a panel per mask: areas before the mask, lines after it, for red, green and blue.

    Args:
        pair: unmasked views of several images.
        draws: random numbers of these images.
        view: the section `view`.
        masks: the masks to draw.
    """
    histograms = [of_mask(mask, pair, draws, view) for mask in masks]
    rows = -(-len(histograms) // _PANELS_PER_ROW)
    figure = new_figure((WIDTH, 1.75 * rows), layout="constrained")
    for index, histogram in enumerate(histograms):
        axes = figure.add_subplot(rows, _PANELS_PER_ROW, index + 1)
        _panel(axes, histogram, labelled=index % _PANELS_PER_ROW == 0)
    return png(figure)


def _panel(axes: "Axes", histogram: Histogram, labelled: bool) -> None:
    limit = histogram.limit
    edges = torch.linspace(-limit, limit, _BINS + 1)
    for before, after, colour in zip(histogram.before, histogram.after, _CHANNELS, strict=True):
        axes.stairs(before.numpy(), edges.numpy(), fill=True, color=colour, alpha=0.2, lw=0)
        axes.stairs(after.numpy(), edges.numpy(), color=colour, lw=1.1)
    format_axes(axes, "")
    axes.set_title(histogram.title.replace("\n", ": "), loc="left", color=INK, fontsize=8.5)
    axes.axvline(0, color=FAINT, lw=1)
    axes.set(xlim=(-limit, limit), ylim=(0.03, 100), yscale="log")
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"] if labelled else [""] * 4)
    axes.minorticks_off()


def _histogram(shown: ShownMask, before: Tensor, after: Tensor, limit: float) -> Histogram:
    return Histogram(
        shown.title_with_kind, limit, channel_shares(before, limit), channel_shares(after, limit)
    )


def channel_shares(images: Tensor, limit: float) -> Tensor:
    """Views (B,3,H,W) -> percent of the pixels of each channel in each bin, (3,bins)."""
    inside = images.float().clamp(-limit, limit).transpose(0, 1).flatten(1)
    counts = torch.stack([torch.histc(channel, _BINS, -limit, limit) for channel in inside])
    return 100 * counts / inside.shape[1]
