"""The common part of the evaluation stages: an encoder and a protocol in, metrics.json out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from salmask.data import manifest as manifests
from salmask.distributed import rank
from salmask.encoders import on_disk as encoder_file
from salmask.evaluate import Evaluation
from salmask.files import write_json
from salmask.job import Job
from salmask.params.values import Choice, bind
from salmask.params.yaml_file import Params
from salmask.provenance import recipe
from salmask.stage_modules import stage_modules
from slurm import launch
from stages.paths import DATA, ENCODER_FILES, EVALUATE, PRETRAIN

_DIGITS = 6  # significant digits of a metric


def evaluate_encoder(
    protocol: str,
    evaluation: Evaluation,
    params: Params,
    run: str,
    *,
    code: str = "",
    data: Path = DATA,
    suffix: str = "",
    encoder: Path | None = None,
    inputs: Sequence[Any] = (),
    files: Sequence[Path] = (),
) -> None:
    """Applies a protocol to an encoder and publishes its metrics.

    Args:
        protocol: its name.
        evaluation: its record.
        params: the parameters.
        run: the name of a run or an import.
        code: the key of its code digest (see `stage_modules`); `evaluate/<protocol>` by default.
        data: the folder of the manifest.
        suffix: distinguishes several results of one protocol and run, such as a data set's name.
        encoder: the folder of the encoder; the run's own by default.
        inputs: arguments of the protocol after the job.
        files: further files that decide the result.
    """
    key = f"evaluate.{protocol}"
    choice = Choice(protocol, params.section(key, dict[str, Any]))
    options = bind(evaluation.run, choice, f"params.yaml: {key}")
    seed = params.seed()
    encoder = encoder or PRETRAIN / run
    result = f"{protocol}-{suffix}" if suffix else protocol
    made_by = recipe(
        protocol,
        f"{run}-{suffix}" if suffix else run,
        stage_modules(params, code or f"evaluate/{protocol}"),
        params.reads,
        [
            data / "manifest.csv",
            data / "dataset.json",
            *(encoder / file for file in ENCODER_FILES),
            *files,
        ],
        Path.cwd(),
    )
    arguments = {
        "evaluate": evaluation.run,
        "options": options,
        "data": data.resolve(),
        "encoder": encoder.resolve(),
        "inputs": inputs,
    }
    out = (EVALUATE / run / result).resolve()
    launch.run(made_by, seed, work, arguments, out, parallel=evaluation.parallel)


def work(
    job: Job,
    evaluate: Callable[..., dict[str, float]],
    options: dict[str, Any],
    data: Path,
    encoder: Path,
    inputs: Sequence[Any] = (),
) -> None:
    """Evaluates the trained encoder, and `random_seeds` untrained ones if the protocol has this
    option. All processes of a group call this together; the first one writes."""
    manifest = manifests.load(data)
    encoders = {"trained": encoder_file.load(encoder, job.device)}
    for seed in range(options.get("random_seeds", 0)):
        encoders[f"random-{seed}"] = encoder_file.random_like(encoder, seed, job.device)
    metrics = evaluate(encoders, manifest, job, *inputs, **options)
    if rank() == 0:
        write_metrics(job, metrics)


def write_metrics(job: Job, metrics: dict[str, float]) -> None:
    """Writes metrics.json and prints it."""
    rounded = {name: float(f"{value:.{_DIGITS}g}") for name, value in sorted(metrics.items())}
    write_json(job.out / "metrics.json", rounded)
    if not metrics:
        print("nothing to score: no validation images, or fewer than two labels", flush=True)
    for name, value in rounded.items():
        print(f"{name} {value:g}", flush=True)
