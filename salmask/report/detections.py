"""Results of detectors for the report: the sheet of test images, and the scores of each class."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salmask.errors import UserError
from salmask.report.tables import RunMetrics

_PREFIX = "detect-"
_NOT_SCORES = ("kind", "class", "objects")  # columns of classes.csv


@dataclass(frozen=True)
class ClassTable:
    """The scores of each class with objects.

    Args:
        kind: `box` or `mask`.
        columns: names of the scores.
        rows: (class, number of objects, scores in percent); None where a score is undefined.
    """

    kind: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[float | None]]]


@dataclass(frozen=True)
class DetectorResults:
    """The results of one run's detector on one data set.

    Args:
        run: name of the run.
        dataset: name of the data set.
        png: content of the sheet's file.
        tables: one for boxes and, with masks, one for masks.
    """

    run: str
    dataset: str
    png: bytes
    tables: Sequence[ClassTable]


def collect(scored: Sequence[RunMetrics], evaluate: Path) -> list[DetectorResults]:
    """The results of all evaluations that are detections.

    Args:
        scored: all evaluations.
        evaluate: the folder with a folder for each run.

    Raises:
        UserError: a file is missing.
    """
    return [_read(s, evaluate / s.run / s.protocol) for s in scored
            if s.protocol.startswith(_PREFIX)]  # fmt: skip


def _read(scored: RunMetrics, folder: Path) -> DetectorResults:
    try:
        png = (folder / "detections.png").read_bytes()
        with (folder / "classes.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro detect`") from None
    kinds = dict.fromkeys(row["kind"] for row in rows)
    tables = [_class_table(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    return DetectorResults(scored.run, scored.protocol.removeprefix(_PREFIX), png, tables)


def _class_table(kind: str, rows: Sequence[dict[str, str]]) -> ClassTable:
    with_objects = [row for row in rows if int(row["objects"])]
    columns = [name for name in rows[0] if name not in _NOT_SCORES]
    columns = [name for name in columns if any(row[name] for row in with_objects)]
    values = [
        (row["class"], int(row["objects"]), [float(row[n]) if row[n] else None for n in columns])
        for row in with_objects
    ]
    return ClassTable(kind, columns, values)
