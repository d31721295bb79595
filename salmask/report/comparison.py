"""A suite's tables: which of our runs answers which cell of a paper's table, and how close it came.

`tables:` in params.yaml holds, by "<paper> <table>", the columns as column -> our metric and the
rows as row -> our run (or a list with a run per column). A setting of a grid stands for its runs,
which repeat it over seeds.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pydantic.dataclasses import dataclass as checked

from salmask.errors import UserError
from salmask.params.names import chosen_evaluations, import_names, run_names
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params
from salmask.report import papers
from salmask.report.papers import Number, PaperTable
from salmask.report.responses import Sweep, half_width, sweeps
from salmask.report.text import DASH, aligned, metric, number

_SIDE_BY_SIDE = 3  # columns of a table for a terminal; more of them get a line each
_PROTOCOLS = ("linear_fast", "linear", "knn", "finetune", "variance")
Answers = str | None | list[str | None]


@checked(frozen=True, config=STRICT)
class Declared:
    """One entry of `tables:`. unpublished: rows of ours that the paper lacks. comparable: false
    where data or recipe are others, so that differences would mean nothing. note: for the page."""

    columns: dict[str, str]
    rows: dict[str, Answers]
    unpublished: dict[str, Answers] = field(default_factory=dict)
    comparable: bool = True
    note: str = ""

    def answers(self) -> dict[str, list[str | None]]:
        """The run or setting that answers each column, by row."""
        both = {**self.rows, **self.unpublished}
        return {
            row: runs if isinstance(runs, list) else [runs] * len(self.columns)
            for row, runs in both.items()
        }


@dataclass(frozen=True)
class Cell:
    """One number of a paper and ours: every run's, in the paper's unit."""

    paper: Number
    ours: Sequence[float]
    comparable: bool

    @property
    def mean(self) -> float | None:
        return fmean(self.ours) if self.ours else None

    @property
    def difference(self) -> float | None:
        if self.mean is None or self.paper is None or not self.comparable:
            return None
        return self.mean - float(self.paper)

    def told(self, name: str) -> str:
        """Ours, with the half width of its 95% interval and the number of runs if repeated."""
        if len(self.ours) < 2:
            return metric(self.mean, name)
        spread = metric(half_width(self.ours), name)
        return f"{metric(self.mean, name)} ± {spread} (n {len(self.ours)})"


@dataclass(frozen=True)
class Comparison:
    """A paper's table with ours beside it. columns: (the paper's, our metric)."""

    table: PaperTable
    columns: Sequence[tuple[str, str]]
    rows: Mapping[str, Sequence[Cell]]
    comparable: bool
    note: str

    @property
    def repeated(self) -> bool:
        return any(len(cell.ours) > 1 for cells in self.rows.values() for cell in cells)


# -------------------------------------------------------------------------------------- checking


def declared(params: Params) -> dict[str, Declared]:
    """`tables:`, checked: that paper, table, columns, rows and runs exist, and that every metric is
    one that its run is evaluated by. Raises UserError."""
    found = params.section("tables", dict[str, Declared])
    answering = _answering(params)
    everywhere, chosen = params.section("evaluate.protocols", list[str]), chosen_evaluations(params)
    done = {run: [*everywhere, *folders] for run, folders in chosen.items()}
    for name, wanted in found.items():
        where = f"{params.source}: tables.{name}"
        paper = papers.table(name, where)
        _known(wanted.columns, paper.columns, f"{where}.columns")
        _known(wanted.rows, list(paper.rows), f"{where}.rows")
        for row, runs in wanted.answers().items():
            if len(runs) != len(wanted.columns):
                raise UserError(
                    f"{where}: {row}: {len(runs)} runs for {len(wanted.columns)} columns; give "
                    "one for all, or one for each, null where there is none"
                )
            for run, name_of_metric in zip(runs, wanted.columns.values(), strict=True):
                if run is None:
                    continue
                if run not in answering:
                    raise UserError(
                        f"{where}: {row}: no run {run!r}; there are: {', '.join(answering)}"
                    )
                for each in answering[run]:
                    _evaluated(name_of_metric, done[each], f"{where}: {row}: {each}")
    return found


def _answering(params: Params) -> dict[str, list[str]]:
    """What a table may name: runs, imports and the settings of grids -> their runs."""
    plain = {name: [name] for name in [*run_names(params), *import_names(params)]}
    swept = {s: runs for sweep in sweeps(params).values() for s, runs in sweep.settings.items()}
    return plain | swept


def _known(asked: Mapping[str, Any], there: Sequence[str], where: str) -> None:
    for name in asked:
        if name not in there:
            raise UserError(f"{where}: the paper has no {name!r}; it has: {'; '.join(there)}")


def _evaluated(name: str, done: Sequence[str], where: str) -> None:
    """Raises UserError unless one of the evaluations makes a metric of this name."""
    plain = re.sub(r"^(knn|finetune)\d+", r"\1", name)
    folders = {folder.replace("-", "_"): folder for folder in done}
    known = sorted({*_PROTOCOLS, *folders}, key=len, reverse=True)
    maker = next((protocol for protocol in known if plain.startswith(f"{protocol}_")), None)
    if maker not in folders:
        told = f"no evaluation of it makes {name}; there are: {', '.join(done)}"
        raise UserError(f"{where}: {told}")


# -------------------------------------------------------------------------------------- comparing


def compare(
    wanted: Mapping[str, Declared], swept: Mapping[str, Sweep], found: Mapping[str, Any]
) -> list[Comparison]:
    """The suite's tables filled in. found: the results, as results.json has them."""
    settings = {s: runs for sweep in swept.values() for s, runs in sweep.settings.items()}
    metrics = {row["run"]: row["metrics"] for row in found["rows"]}

    def cell(paper: PaperTable, row: str, column: str, run: str | None, entry: Declared) -> Cell:
        runs = settings.get(run, [run]) if run else []
        name = entry.columns[column]
        values = [metrics[r][name] / float(paper.unit) for r in runs if name in metrics[r]]
        return Cell(paper.number_at(row, column), values, entry.comparable)

    made = []
    for name, entry in wanted.items():
        paper = papers.tables()[name]
        rows = {
            row: [
                cell(paper, row, column, run, entry)
                for column, run in zip(entry.columns, runs, strict=True)
            ]
            for row, runs in entry.answers().items()
        }
        columns = list(entry.columns.items())
        made.append(Comparison(paper, columns, rows, entry.comparable, entry.note))
    return made


def text(comparison: Comparison) -> str:
    """The table for a terminal."""
    shown = ["paper", "ours", "difference"] if comparison.comparable else ["paper", "ours"]
    if len(comparison.columns) <= _SIDE_BY_SIDE:
        lines = [["", *(s for _ in comparison.columns for s in shown)]]
        for row, cells in comparison.rows.items():
            told = [
                _told(cell, name) for cell, (_, name) in zip(cells, comparison.columns, strict=True)
            ]
            lines.append([row, *(part for parts in told for part in parts[: len(shown)])])
    else:
        lines = [["", *shown]]
        for row, cells in comparison.rows.items():
            for cell, (column, name) in zip(cells, comparison.columns, strict=True):
                lines.append([f"{row}: {column}", *_told(cell, name)[: len(shown)]])
    measured = ", ".join(f"{column}: {name}" for column, name in comparison.columns)
    return "\n".join([comparison.table.heading, f"({measured})", aligned(lines)])


def _told(cell: Cell, name: str) -> list[str]:
    paper = DASH if cell.paper is None else str(cell.paper)
    return [paper, cell.told(name), number(cell.difference, signed=True)]
