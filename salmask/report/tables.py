"""Collects what the runs of params.yaml scored, and lays it out for the page and the terminal.

Only the runs and protocols that params name are read, never a folder's contents: the files of a
run that was taken out of params.yaml stay on disk and must not come back in a table.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salmask.config import RunConfig
from salmask.errors import UserError
from salmask.lineage import Link, Memory, summary, trace
from salmask.report.papers import Reported, beside

DASH = "–"
_UNTRAINED = "random_"
_PERCENT = ("_top1", "_top5", "_mean_per_class", "_ap", "_ap50", "_ap75", "_ap_s", "_ap_m", "_ap_l")


@dataclass(frozen=True)
class Scored:
    """What one protocol said about one run, and where that comes from."""

    run: str
    protocol: str
    metrics: Mapping[str, float]
    link: Link


@dataclass(frozen=True)
class Cell:
    """One metric of one run on one split. None where there is no such number."""

    value: float | None
    untrained: float | None
    paper: Reported | None

    @property
    def gain(self) -> float | None:
        """Points above the untrained encoder."""
        if self.value is None or self.untrained is None:
            return None
        return self.value - self.untrained


@dataclass(frozen=True)
class Block:
    """The results on one split: a row of cells per run, one cell per metric. apart: metric -> run
    -> cell, of the evaluations that were chosen for some runs; too many for columns."""

    split: str
    metrics: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    apart: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All of them."""
        found = [cell for cells in self.rows.values() for cell in cells]
        return found + [cell for cells in self.apart.values() for cell in cells.values()]

    def runs_apart(self) -> list[str]:
        """The runs that evaluations were chosen for, in order."""
        return [run for run in self.rows if any(run in cells for cells in self.apart.values())]

    def has_untrained(self, column: int) -> bool:
        return any(cells[column].untrained is not None for cells in self.rows.values())

    def is_best(self, run: str, column: int) -> bool:
        values = [cells[column].value for cells in self.rows.values()]
        known = [value for value in values if value is not None]
        return bool(known) and self.rows[run][column].value == max(known)

    def untrained_rows(self) -> list[tuple[str, list[float | None]]]:
        """Random encoders, one row per distinct one: (the runs it belongs to, its numbers)."""
        groups: dict[tuple[float | None, ...], list[str]] = {}
        for run, cells in self.rows.items():
            groups.setdefault(tuple(cell.untrained for cell in cells), []).append(run)
        found = [(", ".join(runs), list(values)) for values, runs in groups.items()]
        return [(runs, values) for runs, values in found if any(v is not None for v in values)]


def collect(done: Mapping[str, Sequence[str]], evaluate: Path, root: Path) -> list[Scored]:
    """Reads evaluate/<run>/<protocol>/metrics.json of every run and its protocols, with lineage.

    done: run -> protocols. evaluate, root: absolute; `root` is the project's folder. Raises
    UserError for a missing file.
    """
    found, memory = [], Memory()
    for run, protocols in done.items():
        for protocol in protocols:
            file = evaluate / run / protocol / "metrics.json"
            if not file.is_file():
                raise UserError(f"{file} is missing: run `dvc repro` to evaluate {run}")
            metrics = json.loads(file.read_text())
            found.append(Scored(run, protocol, metrics, trace(file, root, memory)))
    return found


def results(runs: Sequence[str], scored: Sequence[Scored], dataset: str) -> dict[str, Any]:
    """One row per run: the metrics of all its protocols and, in one line, what made them."""
    rows = []
    for run in runs:
        own = [s for s in scored if s.run == run]
        chain = Link(Path(), {}, parents=[s.link for s in own])
        metrics = {name: value for s in own for name, value in s.metrics.items()}
        rows.append({"run": run, "dataset": dataset, "metrics": metrics, "lineage": summary(chain)})
    return {"rows": rows}


def blocks(
    found: Mapping[str, Any],
    splits: Mapping[str, str],
    configs: Mapping[str, RunConfig],
    apart: Collection[str] = (),
) -> list[Block]:
    """The results per split. splits: name -> prefix of its metrics, as `validation_splits` says.
    configs: of the runs that were trained here; no paper's number stands beside the others.
    apart: metrics of evaluations that were chosen for some runs.

    A split on which nothing was scored is left out.
    """
    made = [_block(found["rows"], split, splits, configs, apart) for split in splits]
    return [block for block in made if block.metrics or block.apart]


def _block(
    rows: Sequence[Mapping[str, Any]],
    split: str,
    splits: Mapping[str, str],
    configs: Mapping[str, RunConfig],
    apart: Collection[str],
) -> Block:
    prefix = splits[split]
    others = tuple(p for p in splits.values() if p and p != prefix)

    def own(name: str) -> bool:
        return name.startswith(prefix) and not (not prefix and name.startswith(others))

    names = {n.removeprefix(prefix) for row in rows for n in row["metrics"] if own(n)}
    headline = sorted((n for n in names if not n.startswith(_UNTRAINED)), key=_natural)
    columns = [name for name in headline if prefix + name not in apart]

    def cell(row: Mapping[str, Any], name: str) -> Cell:
        config, metrics = configs.get(row["run"]), row["metrics"]
        return Cell(
            metrics.get(prefix + name),
            metrics.get(prefix + _UNTRAINED + name),
            beside(config, row["dataset"], name) if config and not prefix else None,
        )

    table = {row["run"]: [cell(row, name) for name in columns] for row in rows}
    below = {
        name: {row["run"]: cell(row, name) for row in rows if prefix + name in row["metrics"]}
        for name in headline
        if name not in columns
    }
    return Block(split, columns, table, below)


def first_knn(block: Block) -> int | None:
    """The column of the k-NN metric with the smallest k, or None."""
    columns = [i for i, name in enumerate(block.metrics) if name.startswith("knn")]
    return columns[0] if columns else None


def best_run(found: Sequence[Block], runs: Sequence[str]) -> tuple[str, str]:
    """(the run to look at, why): the best by the first k-NN metric, or simply the first one."""
    column = first_knn(found[0]) if found else None
    if column is None:
        return runs[0], "the first run, since none has a k-NN score"
    scores = {run: cells[column].value for run, cells in found[0].rows.items()}
    known = {run: value for run, value in scores.items() if value is not None}
    best = max(known, key=lambda run: known[run])
    return best, f"the best by {found[0].metrics[column]} on {found[0].split}"


def text(found: Sequence[Block]) -> str:
    """The tables for a terminal: value, random encoder and gain in points side by side; then what
    was evaluated of some runs, a metric per line."""
    made = [lines for block in found for lines in (_rows(block), _rows_apart(block)) if lines]
    return "\n\n".join(_aligned(lines) for lines in made) or "no metrics: nothing was scored"


def _rows(block: Block) -> list[list[str]]:
    if not block.metrics:
        return []
    header = [block.split]
    for i, name in enumerate(block.metrics):
        header += [name, "random", "gain"] if block.has_untrained(i) else [name]
    lines = [header]
    for run, cells in block.rows.items():
        line = [run]
        for i, cell in enumerate(cells):
            line.append(number(cell.value))
            if block.has_untrained(i):
                line += [number(cell.untrained), number(cell.gain, signed=True)]
        lines.append(line)
    return lines


def _rows_apart(block: Block) -> list[list[str]]:
    if not block.apart:
        return []
    runs = block.runs_apart()
    lines = [[block.split, *runs]]
    for name, cells in block.apart.items():
        values = [cells[run].value if run in cells else None for run in runs]
        lines.append([name, *(metric(value, name) for value in values)])
    return lines


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in ruled
    )


def metric(value: float | None, name: str) -> str:
    """Percentages with two decimals, anything else with four digits that count."""
    if value is None or name.endswith(_PERCENT):
        return number(value)
    return f"{value:.4g}".replace("-", "−")


def number(value: float | None, signed: bool = False, decimals: int = 2) -> str:
    """Two decimals or so, a real minus sign, and a dash for what does not exist."""
    if value is None:
        return DASH
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def _natural(name: str) -> list[str | int]:
    """Sorts knn20 before knn200: digits compare as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
