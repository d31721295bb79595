"""Sweeps: what `salmask suite` made of a grid, and how a metric answers to the keys it varies."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass as checked

from salmask.errors import UserError
from salmask.masks import strategies
from salmask.params.names import run_names
from salmask.params.run import RunConfig
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params
from salmask.report.figures import DPI, INK, WIDTH, colour, dress, png

_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@checked(frozen=True, config=STRICT)
class Sweep:
    """One entry of `sweeps:`, written by `salmask suite`. keys: what was varied, seeds apart.
    settings: name -> the runs that repeat it over seeds."""

    keys: list[str]
    settings: dict[str, list[str]]


@dataclass
class Line:
    """Runs that differ in one key and their seeds alone. points: (value, the metric of each)."""

    name: str
    points: list[tuple[Any, list[float]]]


def sweeps(params: Params) -> dict[str, Sweep]:
    """`sweeps:`, checked. Raises UserError."""
    found = params.section("sweeps", dict[str, Sweep])
    known = run_names(params)
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


def lines(
    swept: Mapping[str, Sweep],
    configs: Mapping[str, RunConfig],
    found: Mapping[str, Any],
    metric: str,
) -> dict[str, list[Line]]:
    """By swept key, over all grids: how the metric answers to it where nothing else differs, other
    runs of the same kind included. found: the results, as results.json has them."""
    scores = {row["run"]: row["metrics"].get(metric) for row in found["rows"]}
    every = {name: settings_of(config) for name, config in configs.items()}
    drawn: dict[str, list[Line]] = {}
    for grid, sweep in swept.items():
        for key in sweep.keys:
            seen: list[Any] = []
            for runs in sweep.settings.values():
                rest = _without(every[runs[0]], key)
                if rest in seen:
                    continue
                seen.append(rest)
                alike = [name for name in every if _without(every[name], key) == rest]
                others = [f"{k} {shown(every[runs[0]].get(k))}" for k in sweep.keys if k != key]
                line = Line(", ".join([grid, *others]), [])
                for name in alike:
                    if (score := scores.get(name)) is not None:
                        _add(line, every[name].get(key), score)
                drawn.setdefault(key, []).append(line)
    return {key: found for key, found in drawn.items() if any(line.points for line in found)}


def settings_of(run: RunConfig) -> dict[str, Any]:
    """Everything that decides a run but its seed: dotted key -> value, defaults filled in where
    they are known (a framework's are not)."""
    mask = {"name": run.mask.name, **strategies.options_of(run.mask)}
    framework = {"name": run.framework.name, **run.framework.options}
    sections = {"encoder": run.encoder, "view": run.view, "train": run.train}
    return _flat({**sections, "mask": mask, "framework": framework}, "")


def _flat(value: Any, path: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if not isinstance(value, Mapping):
        return {path: list(value) if isinstance(value, tuple) else value}
    below = [_flat(v, f"{path}.{key}" if path else key) for key, v in value.items()]
    return {key: item for part in below for key, item in part.items()}


def _without(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: value for k, value in settings.items() if k != key}


def _add(line: Line, value: Any, score: float) -> None:
    for known, scores in line.points:
        if known == value:
            scores.append(score)
            return
    line.points.append((value, [score]))


def draw(found: Mapping[str, Sequence[Line]]) -> bytes:
    """PNG: a panel per key, a line per setting of everything else, a point per seed, and the 95%
    interval of the mean where there are several."""
    wide = min(2, len(found))
    tall = -(-len(found) // wide)
    figure = Figure(figsize=(WIDTH, 3.2 * tall), dpi=DPI, layout="constrained")
    for i, (key, drawn) in enumerate(found.items()):
        _draw(figure.add_subplot(tall, wide, i + 1), key, drawn)
    return png(figure)


def _draw(axes: Axes, key: str, drawn: Sequence[Line]) -> None:
    values = [value for line in drawn for value, _ in line.points]
    numeric = all(isinstance(v, float | int) and not isinstance(v, bool) for v in values)
    order = sorted(set(values)) if numeric else list(dict.fromkeys(map(shown, values)))
    for i, line in enumerate(drawn):
        points = [(v if numeric else order.index(shown(v)), scores) for v, scores in line.points]
        points.sort(key=lambda point: point[0])
        spread = [half_width(scores) if len(scores) > 1 else 0.0 for _, scores in points]
        axes.errorbar(
            [at for at, _ in points],
            [fmean(scores) for _, scores in points],
            yerr=spread if any(spread) else None,
            color=colour(i),
            lw=1.6,
            marker="o",
            ms=4,
            capsize=3,
            label=line.name,
        )
        for at, scores in points:
            if len(scores) > 1:
                axes.scatter([at] * len(scores), scores, color=colour(i), s=14, alpha=0.45, lw=0)
    axes.set_xticks(order if numeric else range(len(order)), [shown(value) for value in order])
    dress(axes, key)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def shown(value: Any) -> str:
    """A value as a label: [0.1, 0.2] is `0.1 to 0.2`."""
    if isinstance(value, list):
        return " to ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
