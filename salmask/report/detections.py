"""Results of detectors for the report: the sheet of test images, and the scores of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salmask.errors import UserError
from salmask.report.figures import PageFigure
from salmask.stored_files import damage_reported, read_bytes, read_rows

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


def read(folder: Path, run: str, dataset: str) -> PageFigure:
    """The sheet of one run's detector on one data set, with a table for boxes and, if there are
    masks, one for masks.

    Args:
        folder: of the evaluation.
        run: name of the run, for the caption.
        dataset: name of the data set, for the caption.

    Raises:
        UserError: a file is missing.
    """
    try:
        png = read_bytes(folder / "detections.png")
        rows = read_rows(folder / "classes.csv")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro detect`") from None
    with damage_reported(folder / "classes.csv"):
        kinds = dict.fromkeys(row["kind"] for row in rows)
        tables = [_class_table(k, [row for row in rows if row["kind"] == k]) for k in kinds]
    return PageFigure(png, {"run": run, "dataset": dataset, "tables": tables})


def _class_table(kind: str, rows: Sequence[dict[str, str]]) -> ClassTable:
    with_objects = [row for row in rows if int(row["objects"])]
    columns = [name for name in rows[0] if name not in _NOT_SCORES]
    columns = [name for name in columns if any(row[name] for row in with_objects)]
    values = [
        (row["class"], int(row["objects"]), [float(row[n]) if row[n] else None for n in columns])
        for row in with_objects
    ]
    return ClassTable(kind, columns, values)
