"""Grids of runs in a suite: a key with a list of values becomes one run for each value.

Under `runs:`, a dotted key with a list of values (`train.lr: [0.01, 0.03]`) and a list of seeds are
the axes of a grid. A setting is one combination of values; its runs repeat it over the seeds.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from salmask.errors import UserError


def is_grid(entry: Any) -> bool:
    """Whether the entry of a run describes several runs."""
    return isinstance(entry, Mapping) and bool(_axes(entry))


def expand(entries: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Replaces every grid by its runs.

    A run is named after its grid, and the last part of the key and the value of each axis, for
    example `blur-lr-0p03-seed-1`.

    Args:
        entries: `runs:` of a suite.
        where: start of error messages.

    Returns:
        The entry of each run, and the section `sweeps:`. The latter holds for each grid the keys
        that vary, without seeds, and the runs of each setting:
        {grid: {keys: [...], settings: {setting: [run, ...]}}}.

    Raises:
        UserError: for an axis that is not a list, and for two runs of the same name.
    """
    runs: dict[str, Any] = {}
    sweeps: dict[str, Any] = {}
    for name, entry in entries.items():
        grid = is_grid(entry)
        if grid:
            keys = [key for key in _axes(entry) if key != "seed"]
            sweeps[name] = {"keys": keys, "settings": {}}
        for setting, run, values in _grid(name, entry, where) if grid else [(name, name, entry)]:
            if run in runs:
                raise UserError(f"{where}: two runs would have the name {run}; rename one of them")
            runs[run] = values
            if grid:
                sweeps[name]["settings"].setdefault(setting, []).append(run)
    return runs, sweeps


def members(sweeps: Mapping[str, Any]) -> dict[str, list[str]]:
    """The runs of every grid and of every setting, by its name."""
    runs: dict[str, list[str]] = {}
    for grid, sweep in sweeps.items():
        runs[grid] = [run for group in sweep["settings"].values() for run in group]
        runs |= sweep["settings"]
    return runs


def slug(value: Any) -> str:
    """A value in a-z, 0-9 and -: 0.05 is 0p05, [0.4, 0.7] is 0p4-0p7, -1 is m1, null is none."""
    if isinstance(value, Mapping):
        return "-".join(f"{slug(key)}-{slug(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "-".join(slug(item) for item in value)
    text = str(value).lower()
    if isinstance(value, float | int):
        text = text.replace("+", "").replace("-", "m").replace(".", "p")
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _grid(
    name: str, entry: Mapping[str, Any], where: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (setting, run, entry of the run) for every combination of values."""
    axes = _axes(entry)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: runs.{name}.{key}: must be a list of values, got {values!r}")
    common = {key: value for key, value in entry.items() if key not in axes}
    seeds = axes.pop("seed", None)
    for values in itertools.product(*axes.values()):
        setting, run = name, common
        for key, value in zip(axes, values, strict=True):
            setting += f"-{_short_key(key, axes)}-{slug(value)}"
            run = _with_value(run, key.split("."), value)
        if seeds is None:
            yield setting, setting, run
        else:
            yield from ((setting, f"{setting}-seed-{slug(s)}", run | {"seed": s}) for s in seeds)


def _axes(entry: Mapping[str, Any]) -> dict[str, Any]:
    axes = {key: value for key, value in entry.items() if "." in str(key)}
    return axes | ({"seed": entry["seed"]} if isinstance(entry.get("seed"), list) else {})


def _with_value(entry: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of an entry with the value at a path."""
    first, *rest = path
    if rest:
        nested = entry.get(first)
        value = _with_value(nested if isinstance(nested, Mapping) else {}, rest, value)
    return {**entry, first: value}


def _short_key(key: str, axes: Mapping[str, Any]) -> str:
    """The last part of a key, or the whole key if two axes have the same last part."""
    last = key.rpartition(".")[2]
    same = [other for other in axes if other.rpartition(".")[2] == last]
    return slug(key if len(same) > 1 else last)
