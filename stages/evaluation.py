"""The common part of the evaluation stages: an encoder and a protocol in, metrics.json out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from salmask.artifacts import DATA, ENCODER_FILES, EVALUATE, PRETRAIN
from salmask.data import manifest as manifests
from salmask.distributed import rank
from salmask.encoders import on_disk as encoder_file
from salmask.evaluate import Evaluation, read_options
from salmask.files import write_json
from salmask.job import Job
from salmask.params.yaml_file import Params
from slurm import launch
from stages.provenance import stage_recipe

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
    options = read_options(params, protocol, [run])
    seed = params.seed()
    encoder = encoder or PRETRAIN / run
    name, result = (f"{part}-{suffix}" if suffix else part for part in (run, protocol))
    all_files = [data / "manifest.csv", data / "dataset.json"]
    all_files += [*(encoder / file for file in ENCODER_FILES), *files]
    made_by = stage_recipe(params, protocol, name, all_files, code or f"evaluate/{protocol}")
    arguments = {"evaluate": evaluation.run, "options": options, "inputs": inputs}
    arguments |= {"data": data.absolute(), "encoder": encoder.absolute()}
    out = (EVALUATE / run / result).absolute()
    launch.run(made_by, seed, work, arguments, out, parallel=evaluation.parallel)


def work(
    job: Job,
    evaluate: Callable[..., dict[str, float]],
    options: dict[str, Any],
    data: Path,
    encoder: Path,
    inputs: Sequence[Any] = (),
    load: Callable[[Path], Any] = manifests.load,
) -> None:
    """Evaluates the trained encoder, and `random_seeds` untrained ones if the protocol has this
    option. All processes of a group call this together; the first one writes metrics.json.

    Args:
        job: where and how the work runs.
        evaluate: the function of the protocol.
        options: of the protocol.
        data: the folder of the images, which `load` reads.
        encoder: the folder of the encoder.
        inputs: arguments of the protocol after the job.
        load: returns the second argument of the protocol.
    """
    images = load(data)
    encoders = {"trained": encoder_file.load(encoder, job.device)}
    for seed in range(options.get("random_seeds", 0)):
        encoders[f"random-{seed}"] = encoder_file.random_like(encoder, seed, job.device)
    metrics = evaluate(encoders, images, job, *inputs, **options)
    if rank():
        return
    rounded = {name: float(f"{value:.{_DIGITS}g}") for name, value in sorted(metrics.items())}
    write_json(job.out / "metrics.json", rounded)
    if not metrics:
        print("nothing to score: no validation images, or fewer than two labels", flush=True)
    for name, value in rounded.items():
        print(f"{name} {value:g}", flush=True)
