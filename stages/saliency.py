"""SCDA activation maps of every image, once, into a Zarr store."""

import os
import shutil
from pathlib import Path

import click

from salmask.config import Params, SaliencyConfig
from salmask.data import manifest
from salmask.job import Job
from salmask.provenance import recipe
from salmask.saliency import localizers, maps
from slurm import launch
from stages.common import (
    DATA,
    LOCALIZER,
    LOCALIZER_FILES,
    MANIFEST_FILES,
    SALIENCY,
    STORE,
    readable_errors,
)


def work(job: Job, config: SaliencyConfig, data: Path, localizer: Path) -> None:
    """Fills job.work/saliency.zarr shard by shard, then links it into job.out."""
    rows = manifest.load(data)
    spec, trunk = localizers.load(localizer, job.device)
    store = job.work / STORE.name
    maps.compute(store, maps.plan(rows, config, spec), rows, trunk, config.batch, job)
    shutil.rmtree(job.out / STORE.name, ignore_errors=True)
    shutil.copytree(store, job.out / STORE.name, copy_function=os.link)


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/saliency: the store and its provenance."""
    params = Params.read()
    config = params.section("saliency", SaliencyConfig)
    made_by = recipe("saliency", "", params.reads, [*MANIFEST_FILES, *LOCALIZER_FILES], Path.cwd())
    arguments = {"config": config, "data": DATA.resolve(), "localizer": LOCALIZER.resolve()}
    launch.run(made_by, 0, work, arguments, SALIENCY.resolve())


if __name__ == "__main__":
    main()
