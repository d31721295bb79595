"""`sweeps:` of params.yaml, and charts of a metric over the keys that vary in a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass as checked

from salmask.errors import UserError
from salmask.masks.options import options_of
from salmask.params.names import run_names
from salmask.params.run import RunConfig
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params
from salmask.report.figures import INK, WIDTH, colour, format_axes, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_T975 = (  # the quantile 0.975 of Student's t with 1, 2, ... degrees of freedom
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@checked(frozen=True, config=STRICT)
class Sweep:
    """One entry of `sweeps:`, which `salmask suite` writes.

    Args:
        keys: the keys that vary, without seeds.
        settings: name of a setting -> its runs, which differ in their seed.
    """

    keys: list[str]
    settings: dict[str, list[str]]


@dataclass
class ResponseCurve:
    """The metric of runs that differ in one key, and in their seeds.

    Args:
        name: the values of the other keys, for the legend.
        points: value of the key as text -> (the value, the metric of each run).
    """

    name: str
    points: dict[str, tuple[Any, list[float]]] = field(default_factory=dict)


def sweeps(params: Params) -> dict[str, Sweep]:
    """The section `sweeps:`. Raises UserError for a run that does not exist."""
    sections = params.section("sweeps", dict[str, Sweep])
    known = run_names(params)
    for grid, sweep in sections.items():
        for run in (run for runs in sweep.settings.values() for run in runs):
            if run not in known:
                raise UserError(
                    f"{params.source}: sweeps.{grid}: there is no run {run}; write params.yaml "
                    "again with `salmask suite NAME`"
                )
    return sections


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of the mean of at least two values, by Student's t."""
    freedom = len(values) - 1
    if freedom <= len(_T975):
        quantile = _T975[freedom - 1]
    else:  # Cornish-Fisher expansion around the quantile of the normal distribution
        quantile = 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2
    return quantile * stdev(values) / len(values) ** 0.5


def curves(
    sweeps: Mapping[str, Sweep],
    configs: Mapping[str, RunConfig],
    results: Mapping[str, Any],
    metric: str,
) -> dict[str, list[ResponseCurve]]:
    """The curves of all grids, by the key that varies. Runs that are not in `configs` are left out.

    Runs outside the grid that agree with it in all other keys are points of its curve too.

    Args:
        sweeps: the section `sweeps`.
        configs: all runs by name.
        results: the content of results.json.
        metric: the metric on the vertical axis.
    """
    scores = {row["run"]: row["metrics"].get(metric) for row in results["rows"]}
    settings = {name: settings_of(config) for name, config in configs.items()}
    by_key: dict[str, list[ResponseCurve]] = {}
    for grid, sweep in sweeps.items():
        for key in sweep.keys:
            combinations: list[Any] = []
            for runs in sweep.settings.values():
                finished = [settings[run] for run in runs if run in settings]
                if not finished:
                    continue
                first = finished[0]
                rest = _without(first, key)
                if rest in combinations:
                    continue
                combinations.append(rest)
                others = [f"{k} {label(first.get(k))}" for k in sweep.keys if k != key]
                curve = ResponseCurve(", ".join([grid, *others]))
                for name, own in settings.items():
                    if _without(own, key) == rest and (score := scores.get(name)) is not None:
                        value = own.get(key)
                        curve.points.setdefault(label(value), (value, []))[1].append(score)
                by_key.setdefault(key, []).append(curve)
    return {key: drawn for key, drawn in by_key.items() if any(curve.points for curve in drawn)}


def settings_of(run: RunConfig) -> dict[str, Any]:
    """All parameters of a run except its seed: dotted key -> value.

    Defaults are filled in, except for those of the framework.
    """
    mask = {"name": run.mask.name, **options_of(run.mask)}
    framework = {"name": run.framework.name, **run.framework.options}
    sections = {"encoder": run.encoder, "view": run.view, "train": run.train}
    return _flat({**sections, "mask": mask, "framework": framework}, "")


def draw(curves: Mapping[str, Sequence[ResponseCurve]]) -> bytes:
    """PNG with a panel per key and a line per curve.

    Where a value has several runs, each run is a point, and the error bar is the 95% interval of
    their mean.
    """
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure((WIDTH, 3.2 * rows), layout="constrained")
    for i, (key, lines) in enumerate(curves.items()):
        _draw_panel(figure.add_subplot(rows, columns, i + 1), key, lines)
    return png(figure)


def label(value: Any) -> str:
    """A value as text: [0.1, 0.2] is `0.1 to 0.2`."""
    if isinstance(value, list):
        return " to ".join(map(label, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(value: Any, path: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if not isinstance(value, Mapping):
        return {path: list(value) if isinstance(value, tuple) else value}
    nested = [_flat(v, f"{path}.{key}" if path else key) for key, v in value.items()]
    return {key: item for part in nested for key, item in part.items()}


def _without(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: value for k, value in settings.items() if k != key}


def _draw_panel(axes: "Axes", key: str, curves: Sequence[ResponseCurve]) -> None:
    values = [value for curve in curves for value, _ in curve.points.values()]
    numeric = all(isinstance(v, float | int) and not isinstance(v, bool) for v in values)
    ticks = sorted(set(values)) if numeric else list(dict.fromkeys(map(label, values)))
    for i, curve in enumerate(curves):
        points = [
            (value if numeric else ticks.index(text), scores)
            for text, (value, scores) in curve.points.items()
        ]
        points.sort(key=lambda point: point[0])
        intervals = [half_width(scores) if len(scores) > 1 else 0.0 for _, scores in points]
        axes.errorbar(
            [x for x, _ in points],
            [fmean(scores) for _, scores in points],
            yerr=intervals if any(intervals) else None,
            color=colour(i),
            lw=1.6,
            marker="o",
            ms=4,
            capsize=3,
            label=curve.name,
        )
        for x, scores in points:
            if len(scores) > 1:
                axes.scatter([x] * len(scores), scores, color=colour(i), s=14, alpha=0.45, lw=0)
    axes.set_xticks(ticks if numeric else range(len(ticks)), [label(tick) for tick in ticks])
    format_axes(axes, key)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
