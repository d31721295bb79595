"""What the page says about runs and under their numbers: how they were made, from what."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmask.lineage import Link, summary
from salmask.params.run import RunConfig
from salmask.params.values import Choice
from salmask.report import papers, tables


def about(runs: Sequence[RunConfig], scored: Sequence[tables.Scored]) -> dict[str, str]:
    """What the runs have in common, or the values they differ in."""

    def values(each: Sequence[object]) -> str:
        return " / ".join(dict.fromkeys(str(value) for value in each))

    devices = [
        step.provenance["device"]["type"]
        for s in scored
        for step in _steps(s.link)
        if step.provenance["stage"] == "pretrain"
    ]
    return {
        "framework": values([_framework(r.framework) for r in runs]),
        "arch": values([r.encoder.arch for r in runs]),
        "width": values([r.encoder.width for r in runs]),
        "view": values([r.view.size for r in runs]),
        "grid": values([f"{r.view.grid}×{r.view.grid}" for r in runs]),
        "epochs": values([r.train.epochs for r in runs]),
        "device": values(devices) or "unknown device",
    }


def _framework(choice: Choice) -> str:
    if choice.name == "moco" and choice.options.get("head") == "linear":
        return "MoCo v1"
    return papers.FRAMEWORKS.get(choice.name, choice.name)


def _steps(link: Link) -> list[Link]:
    """Every recorded step behind a link, itself first, each once."""
    found: dict[str, Link] = {}
    todo = [link]
    while todo:
        step = todo.pop(0)
        if step.provenance:
            found.setdefault(step.provenance["fingerprint"], step)
        todo.extend(step.parents)
    return list(found.values())


def imported(name: str, pretrain: Path) -> dict[str, Any]:
    """What the page says of an encoder that others trained."""
    told = json.loads((pretrain / name / "encoder.json").read_text())
    return {"name": name, "encoder": told["encoder"], "input": told["input"]} | told["source"]


def of(scored: tables.Scored) -> dict[str, Any]:
    """What the page says under one protocol's numbers."""
    return {
        "run": scored.run,
        "protocol": scored.protocol,
        "metrics": scored.metrics,
        "path": scored.link.path.as_posix(),
        "chain": summary(scored.link),
        "sound": scored.link.sound(),
        "steps": [
            {
                "made": step.provenance,
                "seed": _seed(step.provenance),
                "path": step.path.as_posix(),
                "problems": step.problems,
            }
            for step in _steps(scored.link)
        ],
    }


def _seed(made: Mapping[str, Any]) -> int | None:
    """What a step's random numbers came from: a pretraining's own seed, or the common one."""
    own = made["params"].get(f"runs.{made['name']}") or {}
    seed = own.get("seed") if made["stage"] == "pretrain" else None
    return made["params"].get("seed") if seed is None else seed
