"""The one shape of an evaluation stage: an encoder and a protocol in, metrics.json out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from salmask.data import manifest
from salmask.distributed import rank
from salmask.encoders import on_disk as encoder_file
from salmask.files import write_json
from salmask.job import Job
from salmask.params.values import Choice, bind
from salmask.params.yaml_file import Params
from salmask.provenance import recipe
from salmask.stage_modules import stage_modules
from slurm import launch
from stages.errors import readable_errors
from stages.paths import DATA, ENCODER_FILES, EVALUATE, PRETRAIN

Evaluate = Callable[..., dict[str, float]]
_SHOWN = 6  # significant digits


def work(
    job: Job,
    evaluate: Evaluate,
    options: dict[str, Any],
    data: Path,
    encoder: Path,
    beside: Sequence[Any] = (),
) -> None:
    """Scores the trained encoder; untrained ones stand beside it where the protocol asks. All
    processes of a group do this together; the first one tells and writes."""
    rows = manifest.load(data)
    encoders = {"trained": encoder_file.load(encoder, job.device)}
    for seed in range(options.get("random_seeds", 0)):
        encoders[f"random-{seed}"] = encoder_file.random_like(encoder, seed, job.device)
    metrics = evaluate(encoders, rows, job, *beside, **options)
    if rank() == 0:
        tell(job, metrics)


def tell(job: Job, metrics: dict[str, float]) -> None:
    """Writes metrics.json and prints it."""
    told = {name: float(f"{value:.{_SHOWN}g}") for name, value in sorted(metrics.items())}
    write_json(job.out / "metrics.json", told)
    if not metrics:
        print("nothing to score: no validation images, or fewer than two labels", flush=True)
    for name, value in told.items():
        print(f"{name} {value:g}", flush=True)


def score(
    protocol: str,
    evaluate: Evaluate,
    params: Params,
    run: str,
    *,
    data: Path = DATA,
    apart: str = "",
    encoder: Path | None = None,
    beside: Sequence[Any] = (),
    inputs: Sequence[Path] = (),
) -> None:
    """Applies `evaluate` to a run's encoder and publishes what it finds.

    data: the manifest's folder. apart: what tells this from the protocol's other results of the
    run, as the name of another dataset does. encoder: its folder, where it is another run's.
    beside: what the protocol is told after the job. inputs: what else decides the result.
    """
    key = f"evaluate.{protocol}"
    choice = Choice(protocol, params.section(key, dict[str, Any]))
    options, seed = bind(evaluate, choice, f"params.yaml: {key}"), params.seed()
    encoder = encoder or PRETRAIN / run
    files = [data / "manifest.csv", data / "dataset.json"]
    files += [*(encoder / file for file in ENCODER_FILES), *inputs]
    name = f"{run}-{apart}" if apart else run
    modules = stage_modules(params, _digest_key(protocol, run))
    made_by = recipe(protocol, name, modules, params.reads, files, Path.cwd())
    arguments = {
        "evaluate": evaluate,
        "options": options,
        "data": data.resolve(),
        "encoder": encoder.resolve(),
        "beside": beside,
    }
    folder = f"{protocol}-{apart}" if apart else protocol
    out = (EVALUATE / run / folder).resolve()
    launch.run(made_by, seed, work, arguments, out, parallel=True)


def _digest_key(protocol: str, run: str) -> str:
    """The key of the protocol's code digest (see `stage_modules`)."""
    keys = {"transfer": "transfer", "variance": f"variance/{run}"}
    return keys.get(protocol, f"evaluate/{protocol}")


def command(protocol: str, evaluate: Evaluate) -> click.Command:
    """The click command of a stage that applies `evaluate` to one run's encoder."""

    @click.command(help=f"Writes artifacts/evaluate/<run>/{protocol}/metrics.json.")
    @click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
    @readable_errors
    def main(name: str) -> None:
        score(protocol, evaluate, Params.read(), name)

    return main
