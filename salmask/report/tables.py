"""The metrics of the runs in params.yaml, arranged for the page and the terminal.

Only files of runs and protocols that params.yaml names are read. The files of a run that was
removed from params.yaml remain on disk, and must not appear in a table.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmask.artifacts import EVALUATE
from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS
from salmask.lineage import Link, TraceCache, summary, trace
from salmask.report.text import metric, number, text_table

_UNTRAINED = "random_"


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of one evaluation of one run, and their lineage.

    Args:
        run: name of the run.
        folder: name of the folder of the evaluation, such as `knn` or `transfer-flowers`.
        metrics: the content of metrics.json.
        link: the lineage.
    """

    run: str
    folder: str
    metrics: Mapping[str, float]
    link: Link

    @property
    def evaluation(self) -> str:
        """The name of the evaluation."""
        return self.folder.partition("-")[0]

    @property
    def dataset(self) -> str:
        """The data set of `transfer` or `detect`; "" for evaluations on the images of `data`."""
        return self.folder.partition("-")[2]

    @property
    def label(self) -> str:
        """The label of the evaluation."""
        return EVALUATIONS[self.evaluation].label or self.evaluation


@dataclass(frozen=True)
class Score:
    """A metric of one run on one split.

    Args:
        value: of the trained encoder; None if it was not measured.
        untrained: of an encoder with random weights; None if it was not measured.
    """

    value: float | None
    untrained: float | None

    @property
    def gain(self) -> float | None:
        """Difference to the untrained encoder, in points."""
        if self.value is None or self.untrained is None:
            return None
        return self.value - self.untrained


@dataclass(frozen=True)
class SplitResults:
    """The results on one split.

    Args:
        split: name of the split.
        metrics: metrics of the protocols that all runs are evaluated by.
        rows: run -> one score per metric.
        chosen: metric -> run -> score, for the evaluations that were chosen for some runs only.
        details: the chosen metrics that are of minor interest.
        labels: metric -> label of its evaluation.
    """

    split: str
    metrics: Sequence[str]
    rows: Mapping[str, Sequence[Score]]
    chosen: Mapping[str, Mapping[str, Score]]
    details: Collection[str]
    labels: Mapping[str, str]

    def chosen_runs(self) -> list[str]:
        """The runs with a chosen evaluation, in order."""
        return [run for run in self.rows if any(run in scores for scores in self.chosen.values())]

    def main_metrics(self) -> list[str]:
        """The chosen metrics to show first."""
        return [name for name in self.chosen if name not in self.details]

    def has_untrained(self, column: int) -> bool:
        """Whether any run has a score of an untrained encoder in a column."""
        return any(scores[column].untrained is not None for scores in self.rows.values())

    def is_best(self, run: str, column: int) -> bool:
        """Whether a run has the largest value of a column."""
        values = [scores[column].value for scores in self.rows.values()]
        known = [value for value in values if value is not None]
        return bool(known) and self.rows[run][column].value == max(known)

    def untrained_rows(self) -> list[tuple[str, list[float | None]]]:
        """One row per distinct untrained encoder: (names of its runs, its values)."""
        groups: dict[tuple[float | None, ...], list[str]] = {}
        for run, scores in self.rows.items():
            groups.setdefault(tuple(score.untrained for score in scores), []).append(run)
        return [
            (", ".join(runs), list(values))
            for values, runs in groups.items()
            if any(value is not None for value in values)
        ]


def collect(folders: Mapping[str, Sequence[str]], root: Path) -> list[RunMetrics]:
    """Reads the metrics of every evaluation, with lineage.

    Args:
        folders: run -> the folders of its evaluations.
        root: absolute path of the project.

    Raises:
        UserError: for a missing file.
    """
    metrics, cache = [], TraceCache()
    for run, names in folders.items():
        for folder in names:
            file = root / EVALUATE / run / folder / "metrics.json"
            if not file.is_file():
                raise UserError(f"{file} is missing: run `dvc repro` to evaluate {run}")
            link = trace(file, root, cache)
            metrics.append(RunMetrics(run, folder, json.loads(file.read_text()), link))
    return metrics


def results(runs: Sequence[str], evaluations: Sequence[RunMetrics], dataset: str) -> dict[str, Any]:
    """The content of results.json: for each run its metrics, and its lineage in one line."""
    rows = []
    for run in runs:
        own = [evaluation for evaluation in evaluations if evaluation.run == run]
        chain = Link(Path(), {}, parents=[evaluation.link for evaluation in own])
        metrics = {name: value for each in own for name, value in each.metrics.items()}
        rows.append({"run": run, "dataset": dataset, "metrics": metrics, "lineage": summary(chain)})
    return {"rows": rows}


def results_by_split(
    evaluations: Sequence[RunMetrics], splits: Mapping[str, str], common: Collection[str]
) -> list[SplitResults]:
    """The results on each split that has any.

    Args:
        evaluations: of all runs.
        splits: split -> prefix of its metrics (see `validation_splits`).
        common: folders of the evaluations that are made for every run.
    """
    made = [_split_results(evaluations, split, splits, common) for split in splits]
    return [each for each in made if each.metrics or each.chosen]


def _split_results(
    evaluations: Sequence[RunMetrics],
    split: str,
    splits: Mapping[str, str],
    common: Collection[str],
) -> SplitResults:
    prefix = splits[split]
    other_prefixes = tuple(other for other in splits.values() if other)
    values: dict[str, dict[str, float]] = {}  # metric without prefix -> run -> value
    labels: dict[str, str] = {}
    chosen, details = set(), []
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            if name.startswith(prefix) if prefix else not name.startswith(other_prefixes):
                name = name.removeprefix(prefix)
                values.setdefault(name, {})[evaluation.run] = value
                labels[name] = evaluation.label
                if evaluation.folder not in common:
                    chosen.add(name)
                if not name.endswith(EVALUATIONS[evaluation.evaluation].main_suffix):
                    details.append(name)

    def score(run: str, name: str) -> Score:
        return Score(values[name].get(run), values.get(_UNTRAINED + name, {}).get(run))

    trained = sorted((n for n in values if not n.startswith(_UNTRAINED)), key=_natural)
    metrics = [name for name in trained if name not in chosen]
    return SplitResults(
        split,
        metrics,
        {e.run: [score(e.run, name) for name in metrics] for e in evaluations},
        {
            name: {run: score(run, name) for run in values[name]}
            for name in trained
            if name in chosen
        },
        [name for name in trained if name in chosen and name in details],
        labels,
    )


def first_knn(results: SplitResults) -> int | None:
    """The column of the k-NN metric with the smallest k, or None."""
    columns = [i for i, name in enumerate(results.metrics) if name.startswith("knn")]
    return columns[0] if columns else None


def best_run(results: Sequence[SplitResults], runs: Sequence[str]) -> tuple[str, str]:
    """(name, reason) of the run with the best first k-NN metric, or of the first run."""
    column = first_knn(results[0]) if results else None
    if column is None:
        return runs[0], "the first run, because no run has a k-NN score"
    scores = {run: row[column].value for run, row in results[0].rows.items()}
    known = {run: value for run, value in scores.items() if value is not None}
    best = max(known, key=lambda run: known[run])
    return best, f"the best run by {results[0].metrics[column]} on {results[0].split}"


def text(results: Sequence[SplitResults]) -> str:
    """The tables for the terminal.

    For each split a table of the common metrics, with the random encoder and the gain, and one of
    the chosen metrics, with a line for each metric.
    """
    tables = []
    for split in results:
        if split.metrics:
            tables.append(_common_table(split))
        if split.chosen:
            tables.append(_chosen_table(split))
    return "\n\n".join(tables) or "no metrics: nothing was evaluated"


def _common_table(results: SplitResults) -> str:
    header = [results.split]
    for i, name in enumerate(results.metrics):
        title = f"{results.labels[name]}\n{name}"
        header += [title, "random", "gain"] if results.has_untrained(i) else [title]
    lines = []
    for run, scores in results.rows.items():
        line = [run]
        for i, score in enumerate(scores):
            line.append(number(score.value))
            if results.has_untrained(i):
                line += [number(score.untrained), number(score.gain, signed=True)]
        lines.append(line)
    return text_table(header, lines)


def _chosen_table(results: SplitResults) -> str:
    runs = results.chosen_runs()
    lines = []
    for name in results.main_metrics():  # results.json and the page have the others too
        scores = results.chosen[name]
        values = [scores[run].value if run in scores else None for run in runs]
        lines.append([results.labels[name], name, *(metric(value, name) for value in values)])
    return text_table([results.split, "", *runs], lines, left=(0, 1))


def _natural(name: str) -> list[str | int]:
    """Sort key that compares digits as numbers, so that knn20 comes before knn200."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
