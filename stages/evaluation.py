"""The one shape of an evaluation stage: an encoder and a protocol in, metrics.json out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from salmask import encoder_file
from salmask.config import Choice, Params, bind
from salmask.data import manifest
from salmask.files import write_json
from salmask.job import Job
from salmask.provenance import recipe
from slurm import launch
from stages.common import DATA, ENCODER_FILES, EVALUATE, MANIFEST_FILES, PRETRAIN, readable_errors

Evaluate = Callable[..., dict[str, float]]


def work(job: Job, evaluate: Evaluate, options: dict[str, Any], data: Path, encoder: Path) -> None:
    """Scores the trained encoder; untrained ones stand beside it where the protocol asks."""
    rows = manifest.load(data)
    encoders = {"trained": encoder_file.load(encoder, job.device)}
    for seed in range(options.get("random_seeds", 0)):
        encoders[f"random-{seed}"] = encoder_file.random_like(encoder, seed, job.device)
    metrics = evaluate(encoders, rows, job, **options)
    write_json(job.out / "metrics.json", {k: round(v, 4) for k, v in sorted(metrics.items())})
    if not metrics:
        print("these images carry fewer than two labels: nothing to score", flush=True)
    for name, value in sorted(metrics.items()):
        print(f"{name} {value:.2f}", flush=True)


def command(protocol: str, evaluate: Evaluate) -> click.Command:
    """The click command of a stage that applies `evaluate` to one run's encoder."""

    @click.command(help=f"Writes artifacts/evaluate/<run>/{protocol}/metrics.json.")
    @click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
    @readable_errors
    def main(name: str) -> None:
        params = Params.read()
        key = f"evaluate.{protocol}"
        choice = Choice(protocol, params.section(key, dict[str, Any]))
        options, seed = bind(evaluate, choice, f"params.yaml: {key}"), params.seed()
        encoder = PRETRAIN / name
        inputs = [*MANIFEST_FILES, *(encoder / file for file in ENCODER_FILES)]
        made_by = recipe(protocol, name, params.reads, inputs, Path.cwd())
        arguments = {
            "evaluate": evaluate,
            "options": options,
            "data": DATA.resolve(),
            "encoder": encoder.resolve(),
        }
        launch.run(made_by, seed, work, arguments, (EVALUATE / name / protocol).resolve())

    return main
