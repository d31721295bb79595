"""Trains a detector around the encoder of one run on one set of `detect`, and scores it."""

import click

from salmask.artifacts import DETECT, ENCODER_FILES, EVALUATE, PRETRAIN
from salmask.detection import prepared_files
from salmask.detection.protocol import run, training_options
from salmask.params.yaml_file import Params
from slurm import launch
from stages.errors import Stage
from stages.evaluation import work
from stages.provenance import stage_recipe


@click.command(cls=Stage)
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
@click.option("--dataset", required=True, help="A name under `detect` in params.yaml.")
def main(name: str, dataset: str) -> None:
    """Writes metrics.json, classes.csv, detections.png to artifacts/evaluate/<run>/detect-<set>."""
    params, key = Params.read(), f"detect.{dataset}.training"
    options, _ = training_options(params.mapping(key), f"{params.source}: {key}")
    seed, data, encoder = params.seed(), DETECT / dataset, PRETRAIN / name
    files = [data / file for file in prepared_files.FILES]
    files += [encoder / file for file in ENCODER_FILES]
    made_by = stage_recipe(params, "detect", f"{name}-{dataset}", files, code="detect")
    arguments = {"evaluate": run, "load": prepared_files.load, "options": options}
    arguments |= {"data": data.absolute(), "encoder": encoder.absolute()}
    out = (EVALUATE / name / f"detect-{dataset}").absolute()
    launch.run(made_by, seed, work, arguments, out, parallel=True)


if __name__ == "__main__":
    main()
