"""The metrics of the runs in params.yaml, arranged for the page and the terminal.

Only files of runs and protocols that params.yaml names are read. The files of a run that was
removed from params.yaml remain on disk, and must not appear in a table.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmask.artifacts import EVALUATE, PRETRAIN
from salmask.evaluate import EVALUATIONS
from salmask.lineage import Link, TraceCache, summary, trace
from salmask.report.text import metric, number, text_table
from salmask.stored_files import damage_reported, read_json

_UNTRAINED = "random_"
_NOT_MADE = "it has not been made yet"


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
class Metric:
    """A metric of all runs on one split.

    Args:
        name: without the prefix of the split.
        label: of its evaluation.
        common: whether its evaluation is made for every run.
        main: whether it is shown first, among those that are not common.
        scores: run -> score.
    """

    name: str
    label: str
    common: bool
    main: bool
    scores: Mapping[str, Score]

    @property
    def has_untrained(self) -> bool:
        """Whether any run has a score of an untrained encoder."""
        return any(score.untrained is not None for score in self.scores.values())

    @property
    def best(self) -> float:
        """The largest value of a trained encoder."""
        return max(score.value for score in self.scores.values() if score.value is not None)


@dataclass(frozen=True)
class SplitResults:
    """The metrics on one split.

    Args:
        split: name of the split.
        common: metrics of the evaluations that are made for every run.
        main: the other metrics that are shown first.
        details: further metrics.
    """

    split: str
    common: Sequence[Metric]
    main: Sequence[Metric]
    details: Sequence[Metric]

    @property
    def chosen_runs(self) -> list[str]:
        """The runs with a metric that is not common, in order."""
        scores = [metric.scores for metric in (*self.main, *self.details)]
        return [
            r for r in (scores[0] if scores else ()) if any(s[r].value is not None for s in scores)
        ]

    @property
    def untrained_rows(self) -> list[tuple[str, list[float | None]]]:
        """One row per distinct untrained encoder: (names of its runs, its values)."""
        groups: dict[tuple[float | None, ...], list[str]] = {}
        for run in self.common[0].scores:
            values = tuple(metric.scores[run].untrained for metric in self.common)
            groups.setdefault(values, []).append(run)
        return [
            (", ".join(runs), list(values))
            for values, runs in groups.items()
            if any(value is not None for value in values)
        ]


def trained(folders: Mapping[str, Sequence[str]], root: Path) -> dict[str, Sequence[str]]:
    """The runs and imports with an encoder. Arguments as in `missing`."""
    return {
        run: names
        for run, names in folders.items()
        if (root / PRETRAIN / run / "encoder.json").is_file()
    }


def missing(
    folders: Mapping[str, Sequence[str]], root: Path, failures: Mapping[str, str]
) -> dict[str, str]:
    """The encoders and evaluations that do not exist, each with the reason.

    Args:
        folders: run -> the folders of its evaluations.
        root: absolute path of the project.
        failures: the messages of failed work, by `<stage>-<name>`.
    """
    reasons, with_encoder = {}, trained(folders, root)
    for run, names in folders.items():
        if run not in with_encoder:
            reasons[f"{run}: no encoder"] = failures.get(f"pretrain-{run}", _NOT_MADE)
            continue
        for folder in names:
            if not (root / EVALUATE / run / folder / "metrics.json").is_file():
                protocol, _, dataset = folder.partition("-")
                label = "-".join(filter(None, (protocol, run, dataset)))
                reasons[f"{run}: no {folder}"] = failures.get(label, _NOT_MADE)
    return reasons


def collect(folders: Mapping[str, Sequence[str]], root: Path) -> list[RunMetrics]:
    """Reads the metrics of every evaluation that exists, with lineage.

    Args:
        folders: run -> the folders of its evaluations.
        root: absolute path of the project.
    """
    metrics, cache = [], TraceCache()
    for run, names in folders.items():
        for folder in names:
            file = root / EVALUATE / run / folder / "metrics.json"
            if file.is_file():
                link = trace(file, root, cache)
                metrics.append(RunMetrics(run, folder, read_metrics(file), link))
    return metrics


def read_metrics(file: Path) -> dict[str, float]:
    """The content of metrics.json. Raises UserError when it is damaged."""
    metrics = read_json(file)
    with damage_reported(file):
        return {str(name): float(value) for name, value in metrics.items()}


def results(runs: Sequence[str], evaluations: Sequence[RunMetrics], dataset: str) -> dict[str, Any]:
    """The content of results.json: for each run its metrics, and its lineage in one line."""
    rows = []
    for run in runs:
        own = [evaluation for evaluation in evaluations if evaluation.run == run]
        chain = Link(Path(), {}, parents=[evaluation.link for evaluation in own])
        metrics = {name: value for each in own for name, value in each.metrics.items()}
        rows.append({"run": run, "dataset": dataset, "metrics": metrics, "lineage": summary(chain)})
    return {"rows": rows}


def missing_text(reasons: Mapping[str, str]) -> str:
    """What is missing, for the terminal; "" if nothing is."""
    if not reasons:
        return ""
    lines = [f"  {what}: {reason}" for what, reason in reasons.items()]
    return "\n".join(["This report is partial. What is missing:", *lines])


def results_by_split(
    evaluations: Sequence[RunMetrics], splits: Mapping[str, str], common: Collection[str]
) -> list[SplitResults]:
    """The results on each split that has any.

    Args:
        evaluations: of all runs.
        splits: split -> prefix of its metrics (see `validation_splits`).
        common: folders of the evaluations that are made for every run.
    """
    results = []
    for split, prefix in splits.items():
        metrics = _metrics(evaluations, prefix, tuple(filter(None, splits.values())), common)
        others = [metric for metric in metrics if not metric.common]
        main, details = ([m for m in others if m.main == shown] for shown in (True, False))
        if metrics:
            results.append(SplitResults(split, [m for m in metrics if m.common], main, details))
    return results


def _metrics(
    evaluations: Sequence[RunMetrics],
    prefix: str,
    prefixes: tuple[str, ...],
    common: Collection[str],
) -> list[Metric]:
    """The metrics on the split with a prefix, sorted by name."""
    values: dict[str, dict[str, float]] = {}  # metric without prefix -> run -> value
    made_by: dict[str, RunMetrics] = {}
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            if name.startswith(prefix) if prefix else not name.startswith(prefixes):
                values.setdefault(name.removeprefix(prefix), {})[evaluation.run] = value
                made_by[name.removeprefix(prefix)] = evaluation
    metrics = []
    for name in sorted((n for n in values if not n.startswith(_UNTRAINED)), key=_natural):
        own, untrained = values[name], values.get(_UNTRAINED + name, {})
        scores = {e.run: Score(own.get(e.run), untrained.get(e.run)) for e in evaluations}
        evaluation = made_by[name]
        main = name.endswith(EVALUATIONS[evaluation.evaluation].main_suffix)
        is_common = evaluation.folder in common
        metrics.append(Metric(name, evaluation.label, is_common, main, scores))
    return metrics


def first_knn(results: Sequence[SplitResults]) -> Metric | None:
    """The k-NN metric with the smallest k on the first split, or None."""
    metrics = results[0].common if results else ()
    return next((metric for metric in metrics if metric.name.startswith("knn")), None)


def best_run(results: Sequence[SplitResults], runs: Sequence[str]) -> tuple[str, str]:
    """(name, reason) of the run with the best first k-NN metric, or of the first run."""
    metric = first_knn(results)
    if metric is None:
        return runs[0], "the first run, because no run has a k-NN score"
    best = next(run for run, score in metric.scores.items() if score.value == metric.best)
    return best, f"the best run by {metric.name} on {results[0].split}"


def text(results: Sequence[SplitResults]) -> str:
    """The tables for the terminal.

    For each split a table of the common metrics, with the random encoder and the gain, and one of
    the chosen metrics, with a line for each metric.
    """
    tables = []
    for split in results:
        if split.common:
            tables.append(_common_table(split))
        if split.main:  # results.json and the page have the details too
            tables.append(_chosen_table(split))
    return "\n\n".join(tables) or "no metrics: nothing was evaluated"


def _common_table(results: SplitResults) -> str:
    header = [results.split]
    lines = {run: [run] for run in results.common[0].scores}
    for each in results.common:
        title = f"{each.label}\n{each.name}"
        header += [title, "random", "gain"] if each.has_untrained else [title]
        for run, score in each.scores.items():
            cells = [number(score.value), number(score.untrained), number(score.gain, signed=True)]
            lines[run] += cells if each.has_untrained else cells[:1]
    return text_table(header, list(lines.values()))


def _chosen_table(results: SplitResults) -> str:
    runs = results.chosen_runs
    lines = [
        [each.label, each.name, *(metric(each.scores[run].value, each.name) for run in runs)]
        for each in results.main
    ]
    return text_table([results.split, "", *runs], lines, left=(0, 1))


def _natural(name: str) -> list[str | int]:
    """Sort key that compares digits as numbers, so that knn20 comes before knn200."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
