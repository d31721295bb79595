"""Charts of the report as PNG bytes: curves over epochs and k-NN bars.

Backgrounds are transparent and the ink is a mid grey, which is readable on a light and on a dark
page. Equal input gives equal bytes, because no time and no version is written to the file.
matplotlib is imported when the first chart is drawn, because that takes a second.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7b7b80"  # a contrast of at least 4:1 on white and on near-black
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
WIDTH = 10.5  # inches, the width of the page's text


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page, with the values for its caption."""

    png: bytes
    facts: Mapping[str, Any]

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


History = Sequence[Mapping[str, float]]  # one mapping per epoch, as in history.csv


@dataclass(frozen=True)
class Bars:
    """One panel of bars.

    Args:
        title: of the panel.
        scores: run -> (trained encoder, untrained encoder); None where unknown.
    """

    title: str
    scores: Mapping[str, tuple[float | None, float | None]]


_PANELS = {  # column of history.csv or probe.csv -> (panel, factor)
    "knn_top1": ("k-NN accuracy, %", 1.0),
    "rankme": ("effective rank of the embeddings (RankMe)", 1.0),
    "spread": ("spread of the embeddings", 1.0),
    "loss": ("loss", 1.0),
    "accuracy": ("key closer than the whole queue, %", 100.0),
    "top1": ("training images in their class, %", 100.0),
    "positive_similarity": ("cosine of query and key (solid), hard negative (dashed)", 1.0),
    "negative_similarity": ("cosine of query and key (solid), hard negative (dashed)", 1.0),
    "lr": ("learning rate", 1.0),
}
_DASHED = ("negative_similarity",)


def curves(histories: Mapping[str, History]) -> bytes:
    """PNG with a panel per metric over the epochs, and one line per run.

    A metric that `_PANELS` does not list gets a panel of its own.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    recorded = dict.fromkeys(k for history in histories.values() for row in history for k in row)
    known = [c for c in _PANELS if c in recorded]
    columns = known + [c for c in recorded if c not in known and c != "epoch"]
    panels: dict[str, list[str]] = {}
    for column in columns:
        panels.setdefault(_PANELS.get(column, (column, 1.0))[0], []).append(column)
    wide = min(2, len(panels)) or 1
    tall = -(-len(panels) // wide) or 1
    legend_rows = -(-len(histories) // 4)
    height = 2.5 * tall + 0.24 * legend_rows + 0.15
    below_legend = 1 - (0.24 * legend_rows + 0.1) / height
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, below_legend))
    figure = new_figure((WIDTH, height), layout=layout)
    for i, (title, members) in enumerate(panels.items()):
        axes = figure.add_subplot(tall, wide, i + 1)
        for column in members:
            factor = _PANELS.get(column, ("", 1.0))[1]
            _lines(axes, histories, column, factor)
        format_axes(axes, title)
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


def _lines(axes: "Axes", histories: Mapping[str, History], column: str, factor: float) -> None:
    for i, history in enumerate(histories.values()):
        points = [(row["epoch"], factor * row[column]) for row in history if column in row]
        if points:
            x, y = zip(*points, strict=True)
            style = "--" if column in _DASHED else "-"
            mark = "o" if len(points) == 1 else None  # one epoch gives no line
            axes.plot(x, y, style, color=colour(i), lw=1.6, marker=mark, ms=4)


def bars(panels: Sequence[Bars]) -> bytes:
    """PNG with horizontal bars, one panel per split. A notch marks the untrained encoder."""
    runs = list(dict.fromkeys(run for panel in panels for run in panel.scores))
    figure = new_figure((WIDTH, 1.05 + 0.34 * len(runs)), layout="constrained")
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
        format_axes(axes, panel.title)
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, limit), ylim=(len(runs) - 0.4, -0.6), yticks=range(len(runs)))
        axes.set_yticklabels(runs if i == 0 else [""] * len(runs), color=INK, fontsize=9.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("top-1, %", color=INK, fontsize=9)
    return png(figure)


def colour(index: int) -> str:
    """The colour of the run at `index`, in every chart."""
    return COLOURS[index % len(COLOURS)]


def new_figure(size: tuple[float, float], **options: Any) -> "Figure":
    """An empty matplotlib figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=DPI, **options)


def format_axes(axes: "Axes", title: str) -> None:
    """Sets the title and the colours that all charts share."""
    axes.set_title(title, loc="left", color=INK, fontsize=10, pad=6)
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def png(figure: "Figure") -> bytes:
    """A figure as PNG bytes, which are equal for equal figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.patch.set_alpha(0)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
