"""The parameters of the runs on the page, and the lineage of each of their numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmask.frameworks import wiring_of
from salmask.lineage import Link, summary
from salmask.params.run import RunConfig
from salmask.report.tables import RunMetrics


def summarize_runs(runs: Sequence[RunConfig], evaluations: Sequence[RunMetrics]) -> dict[str, str]:
    """The main parameters of the runs. Where runs differ, all values, separated by slashes."""

    def values(each: Sequence[object]) -> str:
        return " / ".join(dict.fromkeys(str(value) for value in each))

    devices = [
        step.provenance["device"]["type"]
        for evaluation in evaluations
        for step in _steps(evaluation.link)
        if step.provenance["stage"] == "pretrain"
    ]
    return {
        "framework": values([wiring_of(r.framework, r.train.batch).label for r in runs]),
        "arch": values([r.encoder.arch for r in runs]),
        "width": values([r.encoder.width for r in runs]),
        "view": values([r.view.size for r in runs]),
        "grid": values([f"{r.view.grid}×{r.view.grid}" for r in runs]),
        "epochs": values([r.train.epochs for r in runs]),
        "device": values(devices) or "unknown device",
    }


def imported_encoder(name: str, pretrain: Path) -> dict[str, Any]:
    """The description of an imported encoder, from its encoder.json."""
    spec = json.loads((pretrain / name / "encoder.json").read_text())
    return {"name": name, "encoder": spec["encoder"], "input": spec["input"]} | spec["source"]


def evaluation_evidence(evaluation: RunMetrics) -> dict[str, Any]:
    """The metrics of an evaluation with all steps of its lineage, for the page."""
    return {
        "run": evaluation.run,
        "protocol": evaluation.protocol,
        "metrics": evaluation.metrics,
        "path": evaluation.link.path.as_posix(),
        "chain": summary(evaluation.link),
        "sound": evaluation.link.sound(),
        "steps": [
            {
                "made": step.provenance,
                "seed": _seed(step.provenance),
                "path": step.path.as_posix(),
                "problems": step.problems,
            }
            for step in _steps(evaluation.link)
        ],
    }


def _steps(link: Link) -> list[Link]:
    """Every recorded step of a lineage once, beginning with the last step."""
    steps: dict[str, Link] = {}
    pending = [link]
    while pending:
        step = pending.pop(0)
        if step.provenance:
            steps.setdefault(step.provenance["fingerprint"], step)
        pending.extend(step.parents)
    return list(steps.values())


def _seed(provenance: Mapping[str, Any]) -> int | None:
    """The seed of a step: the run's own seed for pretraining, or else the common seed."""
    own = provenance["params"].get(f"runs.{provenance['name']}") or {}
    seed = own.get("seed") if provenance["stage"] == "pretrain" else None
    return provenance["params"].get("seed") if seed is None else seed
