"""Sweeps: what `salmask suite` made of a grid, and how a metric answers to the keys it varies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass as checked

from salmask.config import STRICT, Params
from salmask.errors import UserError
from salmask.report.figures import DPI, INK, WIDTH, colour, dress, png

_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@checked(frozen=True, config=STRICT)
class Sweep:
    """One entry of `sweeps:`. keys: what was varied, seeds apart. settings: name -> the runs that
    repeat it over seeds. values: name -> its value of every key."""

    keys: list[str]
    settings: dict[str, list[str]]
    values: dict[str, list[Any]]


@dataclass(frozen=True)
class Panel:
    """The response to one key. lines: what else distinguishes them -> (value, metric per seed)."""

    key: str
    lines: Mapping[str, Sequence[tuple[Any, Sequence[float]]]]


def sweeps(params: Params) -> dict[str, Sweep]:
    """`sweeps:`, checked. Raises UserError."""
    found = params.section("sweeps", dict[str, Sweep])
    known = params.run_names()
    for grid, swept in found.items():
        for run in (run for runs in swept.settings.values() for run in runs):
            if run not in known:
                raise UserError(
                    f"{params.source}: sweeps.{grid}: there is no run {run}; write params.yaml "
                    "anew with `salmask suite NAME`"
                )
    return found


def half_width(values: Sequence[float]) -> float:
    """Of the 95% interval of a mean, by Student's t. At least two values."""
    freedom = len(values) - 1
    if freedom <= len(_T975):
        quantile = _T975[freedom - 1]
    else:  # Cornish and Fisher's expansion around the normal quantile
        quantile = 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2
    return quantile * stdev(values) / len(values) ** 0.5


def panels(swept: Mapping[str, Sweep], found: Mapping[str, Any], metric: str) -> list[Panel]:
    """One per swept key, over all grids. found: the results, as results.json has them."""
    metrics = {row["run"]: row["metrics"] for row in found["rows"]}
    lines: dict[str, dict[str, list[tuple[Any, list[float]]]]] = {}
    for grid, sweep in swept.items():
        for setting, runs in sweep.settings.items():
            scores = [metrics[run][metric] for run in runs if metric in metrics[run]]
            point = dict(zip(sweep.keys, sweep.values[setting], strict=True))
            for key, value in point.items():
                rest = [f"{k} {_shown(v)}" for k, v in point.items() if k != key]
                line = lines.setdefault(key, {}).setdefault(", ".join([grid, *rest]), [])
                if scores:
                    line.append((value, scores))
    return [Panel(key, drawn) for key, drawn in lines.items() if any(drawn.values())]


def draw(found: Sequence[Panel]) -> bytes:
    """PNG: a panel per key, a line per setting of everything else, a point per seed, and the 95%
    interval of the mean where there are several."""
    wide = min(2, len(found))
    tall = -(-len(found) // wide)
    figure = Figure(figsize=(WIDTH, 3.2 * tall), dpi=DPI, layout="constrained")
    for i, panel in enumerate(found):
        _draw(figure.add_subplot(tall, wide, i + 1), panel)
    return png(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    values = [value for points in panel.lines.values() for value, _ in points]
    numeric = all(isinstance(v, float | int) and not isinstance(v, bool) for v in values)
    order = sorted(set(values)) if numeric else list(dict.fromkeys(map(_shown, values)))
    for i, (name, points) in enumerate(panel.lines.items()):
        where = [value if numeric else order.index(_shown(value)) for value, _ in points]
        line = sorted(zip(where, (scores for _, scores in points), strict=True))
        x, means = [at for at, _ in line], [fmean(scores) for _, scores in line]
        spread = [half_width(scores) if len(scores) > 1 else 0.0 for _, scores in line]
        axes.errorbar(
            x, means, yerr=spread if any(spread) else None, color=colour(i), lw=1.6, marker="o",
            ms=4, capsize=3, label=name,
        )  # fmt: skip
        seeds = [(at, score) for at, scores in line for score in scores if len(scores) > 1]
        if seeds:
            across, up = zip(*seeds, strict=True)
            axes.scatter(across, up, color=colour(i), s=14, alpha=0.45, lw=0)
    axes.set_xticks(order if numeric else range(len(order)), [_shown(value) for value in order])
    dress(axes, panel.key)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
