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

from salmask.errors import UserError
from salmask.lineage import Link, Memory, summary, trace
from salmask.report.text import aligned, metric, number

_UNTRAINED = "random_"


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

    def runs_apart(self) -> list[str]:
        """The runs that evaluations were chosen for, in order."""
        return [run for run in self.rows if any(run in cells for cells in self.apart.values())]

    def headlines(self) -> list[str]:
        """The metrics apart that are worth a line: of variances, that of raw pooled features."""
        return [n for n in self.apart if "variance" not in n or n.endswith("_pooled")]

    def details(self) -> list[str]:
        """The other metrics apart."""
        return [name for name in self.apart if name not in self.headlines()]

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
    apart: Collection[str] = (),
) -> list[Block]:
    """The results per split. splits: name -> prefix of its metrics, as `validation_splits` says.
    apart: metrics of evaluations that were chosen for some runs.

    A split on which nothing was scored is left out.
    """
    made = [_block(found["rows"], split, splits, apart) for split in splits]
    return [block for block in made if block.metrics or block.apart]


def _block(
    rows: Sequence[Mapping[str, Any]],
    split: str,
    splits: Mapping[str, str],
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
        metrics = row["metrics"]
        return Cell(metrics.get(prefix + name), metrics.get(prefix + _UNTRAINED + name))

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
    return "\n\n".join(aligned(lines) for lines in made) or "no metrics: nothing was scored"


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
    for name in block.headlines():  # the others are in results.json, and folded up on the page
        cells = block.apart[name]
        values = [cells[run].value if run in cells else None for run in runs]
        lines.append([name, *(metric(value, name) for value in values)])
    return lines


def _natural(name: str) -> list[str | int]:
    """Sorts knn20 before knn200: digits compare as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
