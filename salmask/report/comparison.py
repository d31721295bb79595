"""`tables:` of params.yaml: the tables of the papers, filled in with the metrics of our runs.

An entry "<paper> <table>" maps columns of the paper to our metrics, and rows of the paper to our
runs. A setting of a grid stands for its runs, which repeat it with several seeds.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pydantic.dataclasses import dataclass as checked

from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS
from salmask.params.names import evaluation_folders
from salmask.params.values import STRICT
from salmask.params.yaml_file import Params
from salmask.report import papers, sweep_charts
from salmask.report.papers import Number, PaperTable
from salmask.report.sweep_charts import Sweep, half_width
from salmask.report.text import DASH, metric, number, text_table

_SIDE_BY_SIDE = 3  # a table with more columns has a line per column in the terminal
RowRuns = str | None | list[str | None]  # one run for all columns, or one for each


@checked(frozen=True, config=STRICT)
class TableConfig:
    """One entry of `tables:`.

    Args:
        columns: column of the paper -> our metric.
        rows: row of the paper -> our run, or a list with one run (or null) per column.
        unpublished: rows that the paper does not have, in the same form.
        comparable: false if our data or recipe differ, so that differences have no meaning.
        note: a note for the page.
    """

    columns: dict[str, str]
    rows: dict[str, RowRuns]
    unpublished: dict[str, RowRuns] = field(default_factory=dict)
    comparable: bool = True
    note: str = ""

    def runs(self) -> dict[str, list[str | None]]:
        """row -> the run or setting for each column."""
        return {
            row: runs if isinstance(runs, list) else [runs] * len(self.columns)
            for row, runs in {**self.rows, **self.unpublished}.items()
        }


@dataclass(frozen=True)
class NumberPair:
    """One number of a paper, and the same metric of each of our runs, in the unit of the paper."""

    paper: Number
    ours: Sequence[float]
    comparable: bool

    @property
    def mean(self) -> float | None:
        """The mean over our runs; None if there is none."""
        return fmean(self.ours) if self.ours else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the number of the paper; None where the two do not compare."""
        if self.mean is None or self.paper is None or not self.comparable:
            return None
        return self.mean - float(self.paper)

    def format(self, name: str) -> str:
        """Our mean as text, with half of its 95% interval if there are several runs.

        name: the metric, which decides the number of digits.
        """
        if len(self.ours) < 2:
            return metric(self.mean, name)
        interval = metric(half_width(self.ours), name)
        return f"{metric(self.mean, name)} ± {interval} (n {len(self.ours)})"


@dataclass(frozen=True)
class Comparison:
    """A table of a paper with our numbers.

    Args:
        table: the table of the paper.
        config: the entry of `tables:`.
        rows: row -> one pair of numbers per column.
    """

    table: PaperTable
    config: TableConfig
    rows: Mapping[str, Sequence[NumberPair]]

    @property
    def repeated(self) -> bool:
        """Whether any number of ours is a mean over several runs."""
        return any(len(pair.ours) > 1 for pairs in self.rows.values() for pair in pairs)


def read_tables(params: Params) -> dict[str, TableConfig]:
    """The section `tables:`.

    Raises:
        UserError: if a paper, table, column, row or run does not exist, or if a run has no
            evaluation that computes the metric.
    """
    configs = params.section("tables", dict[str, TableConfig])
    evaluations = evaluation_folders(params)
    # Every name that a table may use: a run, an import, or a setting of a grid.
    members = {name: [name] for name in evaluations} | _settings(sweep_charts.sweeps(params))
    for name, config in configs.items():
        where = f"{params.source}: tables.{name}"
        paper = papers.table(name, where)
        _refuse_unknown(config.columns, paper.columns, f"{where}.columns")
        _refuse_unknown(config.rows, list(paper.rows), f"{where}.rows")
        for row, runs in config.runs().items():
            if len(runs) != len(config.columns):
                raise UserError(
                    f"{where}: {row}: {len(runs)} runs for {len(config.columns)} columns; give "
                    "one run for all columns, or one run or null for each"
                )
            for run, metric_name in zip(runs, config.columns.values(), strict=True):
                if run is None:
                    continue
                if run not in members:
                    raise UserError(
                        f"{where}: {row}: no run {run!r}; there are: {', '.join(members)}"
                    )
                for member in members[run]:
                    _refuse_unevaluated(
                        metric_name, evaluations[member], f"{where}: {row}: {member}"
                    )
    return configs


def _settings(sweeps: Mapping[str, Sweep]) -> dict[str, list[str]]:
    """The runs of every setting of a grid."""
    return {name: runs for sweep in sweeps.values() for name, runs in sweep.settings.items()}


def _refuse_unknown(names: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: the paper has no {name!r}; it has: {'; '.join(known)}")


def _refuse_unevaluated(name: str, folders: Sequence[str], where: str) -> None:
    """Raises UserError unless one of a run's evaluations computes the metric `name`."""
    own = {folder.replace("-", "_") for folder in folders}
    # A number may follow the name of an evaluation, as in knn20_top1.
    starts = {start: f"{start}_" for start in own} | {e: rf"{e}\d*_" for e in EVALUATIONS}
    matches = [start for start, pattern in starts.items() if re.match(pattern, name)]
    if max(matches, key=len, default=None) not in own:
        raise UserError(
            f"{where}: no evaluation of this run computes {name}; there are: {', '.join(folders)}"
        )


def compare(
    configs: Mapping[str, TableConfig], sweeps: Mapping[str, Sweep], results: Mapping[str, Any]
) -> list[Comparison]:
    """The tables of the papers with our numbers.

    Args:
        configs: the section `tables`.
        sweeps: the section `sweeps`.
        results: the content of results.json.
    """
    settings = _settings(sweeps)
    metrics = {row["run"]: row["metrics"] for row in results["rows"]}
    comparisons = []
    for table, config in configs.items():
        paper = papers.tables()[table]
        rows: dict[str, list[NumberPair]] = {}
        for row, runs in config.runs().items():
            rows[row] = []
            for (column, name), run in zip(config.columns.items(), runs, strict=True):
                own = settings.get(run, [run]) if run else []
                values = [metrics[r][name] for r in own if name in metrics.get(r, {})]
                ours = [value / float(paper.unit) for value in values]
                number = paper.number_at(row, column)
                rows[row].append(NumberPair(number, ours, config.comparable))
        comparisons.append(Comparison(paper, config, rows))
    return comparisons


def text(comparison: Comparison) -> str:
    """A comparison as a table for the terminal."""
    config = comparison.config
    titles = ["paper", "ours", "difference"] if config.comparable else ["paper", "ours"]
    names = list(config.columns.values())

    def cells(pair: NumberPair, name: str) -> list[str]:
        paper = DASH if pair.paper is None else str(pair.paper)
        return [paper, pair.format(name), number(pair.difference, signed=True)][: len(titles)]

    if len(names) <= _SIDE_BY_SIDE:
        header = ["", *(title for _ in names for title in titles)]
        lines = [
            [row, *(text for pair, n in zip(pairs, names, strict=True) for text in cells(pair, n))]
            for row, pairs in comparison.rows.items()
        ]
    else:
        header = ["", *titles]
        lines = [
            [f"{row}: {column}", *cells(pair, name)]
            for row, pairs in comparison.rows.items()
            for pair, (column, name) in zip(pairs, config.columns.items(), strict=True)
        ]
    metrics = ", ".join(f"{column}: {name}" for column, name in config.columns.items())
    return "\n".join([comparison.table.heading, f"({metrics})", text_table(header, lines)])
