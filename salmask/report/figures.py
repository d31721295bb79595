"""Charts of the report as PNG bytes: training curves and k-NN bars.

Backgrounds are transparent and the ink is a mid grey, so that one picture reads on a light and on
a dark page. Equal input gives equal bytes: no time and no version goes into the file.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

INK = "#7b7b80"  # 4:1 or more on white and on near-black
FAINT = (0.5, 0.5, 0.5, 0.25)
COLOURS = (
    "#3f7fd0",
    "#d9702b",
    "#2e9c72",
    "#b9559b",
    "#8a72cf",
    "#b58f16",
    "#2f9db0",
    "#a8604a",
    "#7c8c39",
    "#77808c",
)
DPI = 160
WIDTH = 10.5  # inches: the page's text width

History = Sequence[Mapping[str, float]]  # one mapping per epoch, as history.csv has them


@dataclass(frozen=True)
class Bars:
    """One panel of bars. scores: run -> (trained, untrained), None where unknown."""

    title: str
    scores: Mapping[str, tuple[float | None, float | None]]


_PANELS = {  # column of history.csv -> (panel, factor)
    "loss": ("loss", 1.0),
    "accuracy": ("key closer than the whole queue, %", 100.0),
    "positive_similarity": ("cosine of query and key (solid), hard negative (dashed)", 1.0),
    "negative_similarity": ("cosine of query and key (solid), hard negative (dashed)", 1.0),
    "lr": ("learning rate", 1.0),
}
_DASHED = ("negative_similarity",)


def curves(histories: Mapping[str, History]) -> bytes:
    """Small multiples over epochs, one line per run; a metric nobody names gets its own panel."""
    found = dict.fromkeys(k for history in histories.values() for row in history for k in row)
    known = [c for c in _PANELS if c in found]
    columns = known + [c for c in found if c not in known and c != "epoch"]
    panels: dict[str, list[str]] = {}
    for column in columns:
        panels.setdefault(_PANELS.get(column, (column, 1.0))[0], []).append(column)
    wide = min(2, len(panels)) or 1
    tall = -(-len(panels) // wide) or 1
    legend_rows = -(-len(histories) // 4)
    height = 2.5 * tall + 0.24 * legend_rows + 0.15
    below_legend = 1 - (0.24 * legend_rows + 0.1) / height
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, below_legend))
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    for i, (title, members) in enumerate(panels.items()):
        axes = figure.add_subplot(tall, wide, i + 1)
        for column in members:
            factor = _PANELS.get(column, ("", 1.0))[1]
            _lines(axes, histories, column, factor)
        dress(axes, title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("epoch", color=INK, fontsize=9)
    handles = [Line2D([], [], color=colour(i), lw=2.5) for i in range(len(histories))]
    figure.legend(
        handles,
        list(histories),
        loc="upper left",
        ncol=4,
        frameon=False,
        labelcolor=INK,
        fontsize=9.5,
        borderaxespad=0.2,
    )
    return png(figure)


def _lines(axes: Axes, histories: Mapping[str, History], column: str, factor: float) -> None:
    for i, history in enumerate(histories.values()):
        points = [(row["epoch"], factor * row[column]) for row in history if column in row]
        if points:
            x, y = zip(*points, strict=True)
            style = "--" if column in _DASHED else "-"
            mark = "o" if len(points) == 1 else None  # a single epoch draws no line
            axes.plot(x, y, style, color=colour(i), lw=1.6, marker=mark, ms=4)


def bars(panels: Sequence[Bars]) -> bytes:
    """Horizontal bars side by side, one panel per split; a notch marks each random encoder."""
    runs = list(dict.fromkeys(run for panel in panels for run in panel.scores))
    figure = Figure(figsize=(WIDTH, 1.05 + 0.34 * len(runs)), dpi=DPI, layout="constrained")
    scores = [s for p in panels for pair in p.scores.values() for s in pair if s is not None]
    limit = 1.18 * max([*scores, 1.0])
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for row, run in enumerate(runs):
            trained, untrained = panel.scores.get(run, (None, None))
            if trained is not None:
                axes.barh(row, trained, height=0.62, color=colour(row), alpha=0.85, lw=0)
                axes.text(
                    trained + 0.012 * limit, row, f"{trained:.2f}", va="center", color=INK, size=9.5
                )
            if untrained is not None:
                axes.plot([untrained] * 2, [row - 0.42, row + 0.42], color="#ffffff", lw=3.2)
                axes.plot([untrained] * 2, [row - 0.42, row + 0.42], color="#30343a", lw=1.6)
        dress(axes, panel.title)
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, limit), ylim=(len(runs) - 0.4, -0.6), yticks=range(len(runs)))
        axes.set_yticklabels(runs if i == 0 else [""] * len(runs), color=INK, fontsize=9.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("top-1, %", color=INK, fontsize=9)
    return png(figure)


def colour(index: int) -> str:
    """The colour of the run at `index`, in every chart."""
    return COLOURS[index % len(COLOURS)]


def dress(axes: Axes, title: str) -> None:
    """The look that all charts share."""
    axes.set_title(title, loc="left", color=INK, fontsize=10, pad=6)
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def png(figure: Figure) -> bytes:
    """A figure as the same PNG bytes every time."""
    figure.patch.set_alpha(0)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
