"""What detectors found, for the page: the sheet of pictures, and each class's results."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salmask.errors import UserError
from salmask.report.tables import RunMetrics

_PREFIX = "detect-"
_APART = ("kind", "class", "objects")  # the columns that are no AP


@dataclass(frozen=True)
class ByClass:
    """Boxes or masks. columns: names of APs. rows: (class, its objects, an AP in percent or None
    per column), of the classes with objects."""

    kind: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[float | None]]]


@dataclass(frozen=True)
class Detected:
    """What one run's detector found in one set of images. png: the sheet."""

    run: str
    dataset: str
    png: bytes
    tables: Sequence[ByClass]


def collect(scored: Sequence[RunMetrics], evaluate: Path) -> list[Detected]:
    """Of every evaluation that was a detection. evaluate: where they lie. Raises UserError for a
    file that is missing."""
    return [_read(s, evaluate / s.run / s.protocol) for s in scored
            if s.protocol.startswith(_PREFIX)]  # fmt: skip


def _read(scored: RunMetrics, folder: Path) -> Detected:
    try:
        png = (folder / "detections.png").read_bytes()
        with (folder / "classes.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro detect`") from None
    kinds = dict.fromkeys(row["kind"] for row in rows)
    tables = [_table(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    return Detected(scored.run, scored.protocol.removeprefix(_PREFIX), png, tables)


def _table(kind: str, rows: Sequence[dict[str, str]]) -> ByClass:
    there = [row for row in rows if int(row["objects"])]
    columns = [name for name in rows[0] if name not in _APART]
    columns = [name for name in columns if any(row[name] for row in there)]
    shown = [
        (row["class"], int(row["objects"]), [float(row[n]) if row[n] else None for n in columns])
        for row in there
    ]
    return ByClass(kind, columns, shown)
