"""Trains a detector around the encoder of one run on one set of `detect`, and scores it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from salmask.detection import prepared_files
from salmask.detection.options import training_options
from salmask.detection.protocol import run
from salmask.distributed import rank
from salmask.encoders import on_disk as encoder_file
from salmask.job import Job
from salmask.params.yaml_file import Params
from salmask.provenance import recipe
from salmask.stage_modules import stage_modules
from slurm import launch
from stages.errors import readable_errors
from stages.evaluation import write_metrics
from stages.paths import DETECT, ENCODER_FILES, EVALUATE, PRETRAIN


def work(job: Job, options: dict[str, Any], data: Path, encoder: Path) -> None:
    """Trains and scores a detector. All processes of the job call this."""
    annotated = prepared_files.load(data)
    encoders = {"trained": encoder_file.load(encoder, job.device)}
    metrics = run(encoders, annotated, job, **options)
    if rank() == 0:
        write_metrics(job, metrics)


@click.command()
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
@click.option("--dataset", required=True, help="A name under `detect` in params.yaml.")
@readable_errors
def main(name: str, dataset: str) -> None:
    """Writes metrics.json, classes.csv, detections.png to artifacts/evaluate/<run>/detect-<set>."""
    params, key = Params.read(), f"detect.{dataset}.training"
    options, schedule = training_options(params.mapping(key), f"{params.source}: {key}")
    seed, data, encoder = params.seed(), DETECT / dataset, PRETRAIN / name
    files = [data / file for file in prepared_files.FILES]
    files += [encoder / file for file in ENCODER_FILES]
    made_by = recipe(
        "detect",
        f"{name}-{dataset}",
        stage_modules(params, "detect"),
        params.reads | {f"{key}.recipe": asdict(schedule)},  # a changed preset changes the result
        files,
        Path.cwd(),
    )
    arguments = {"options": options, "data": data.resolve(), "encoder": encoder.resolve()}
    out = (EVALUATE / name / f"detect-{dataset}").resolve()
    launch.run(made_by, seed, work, arguments, out, parallel=True)


if __name__ == "__main__":
    main()
