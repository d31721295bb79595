"""`salmask results`: the tables of the last report, with marks at numbers that no longer match."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from salmask.artifacts import EVALUATE, REPORT
from salmask.errors import UserError
from salmask.files import parse_json
from salmask.lineage import TraceCache, trace
from salmask.provenance import find_root
from salmask.stored_files import damage_reported, read_json


def marked_results() -> str:
    """The tables of the last report. A `!` marks each run with a problem; a list below names them.

    A problem is a difference between a number in the tables and its metrics.json, or any difference
    in the lineage of that file.

    Raises:
        UserError: if there is no project or no report.
    """
    root = find_root()
    report = root / REPORT
    if not (report / "results.txt").is_file():
        raise UserError(f"{report} has no results yet: run `dvc repro`")
    text = (report / "results.txt").read_text(encoding="utf-8", errors="replace").rstrip()
    results, cache = read_json(report / "results.json"), TraceCache()
    with damage_reported(report / "results.json"):
        problems = {
            row["run"]: list(dict.fromkeys(_problems(row, root, cache))) for row in results["rows"]
        }
    stale = [run for run, texts in problems.items() if texts]
    if stale:
        text = "\n".join(_marked(line, stale) for line in text.splitlines())
        lines = [f"! {', '.join(runs)}: {problem}" for problem, runs in _by_problem(problems)]
        text = "\n".join([text, "", "what no longer matches:", *lines])
    return f"{text}\n\nreport: {report / 'index.html'}"


def _problems(row: dict[str, Any], root: Path, cache: TraceCache) -> Iterator[str]:
    """What no longer matches the metrics of a run in results.json."""
    metrics: dict[str, float] = {}
    for file in sorted((root / EVALUATE / row["run"]).glob("*/metrics.json")):
        try:
            own: dict[str, float] = parse_json(file.read_bytes())
            in_report = own.keys() & row["metrics"].keys()
        except (ValueError, AttributeError):
            yield f"{file.relative_to(root)} is damaged"
            continue
        if not in_report:
            continue  # of a protocol that is not in the report
        metrics |= own
        yield from trace(file, root, cache).all_problems()
    if metrics != row["metrics"]:
        yield "the report is older than its metrics: run `dvc repro report`"


def _by_problem(problems: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Each problem with all runs that have it."""
    texts = dict.fromkeys(text for own in problems.values() for text in own)
    return [(text, [run for run, own in problems.items() if text in own]) for text in texts]


def _marked(line: str, runs: Sequence[str]) -> str:
    """A line with `!` before the names of some runs, whether they name the line or a column."""
    line = f"  {line}"
    for run in runs:
        line = re.sub(rf" (?={re.escape(run)}(  |$))", "!", line)
    return line
