"""SCDA activation maps of every image, once, into a Zarr store."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import click
import torch

from salmask.config import Params, SaliencyConfig
from salmask.data import manifest
from salmask.devices import pick_device
from salmask.files import write_rows
from salmask.job import Job
from salmask.provenance import FILE_NAME, Recipe, environment, recipe
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


def work(
    job: Job, config: SaliencyConfig, data: Path, localizer: Path, earlier: list[Path]
) -> None:
    """Fills job.work/saliency.zarr shard by shard, then links it into job.out."""
    rows = manifest.load(data)
    spec, trunk = localizers.load(localizer, job.device)
    store = job.work / STORE.name
    plan = maps.plan(rows, config, spec)
    lost = maps.compute(store, plan, rows, trunk, config, job, earlier).tolist()
    shutil.rmtree(job.out / STORE.name, ignore_errors=True)
    shutil.copytree(store, job.out / STORE.name, copy_function=os.link)
    listed = [{"id": row, "path": rows.paths[row]} for row in lost]
    write_rows(job.out / "lost.csv", listed, ("id", "path"))
    if lost:
        print(
            f"{len(lost)} images vanished or changed since prepare, and have empty maps: see "
            f"{SALIENCY}/lost.csv; `dvc repro` brings manifest and maps up to date",
            flush=True,
        )


def earlier_stores(made_by: Recipe, runs: Path, device: torch.device) -> list[Path]:
    """Finished stores of the same code, parameters, localizer, versions and device, over other
    images: rows of the same image are the same there, and need not be computed again."""

    here = environment(device)

    def same(out: Path) -> bool:
        try:
            told: dict[str, Any] = json.loads((out / FILE_NAME).read_text())
        except (OSError, ValueError):  # a folder that someone tidied
            return False
        return bool(
            (told["code"], told["params"]) == (made_by.code, made_by.params)
            and all(told["inputs"].get(str(w)) == made_by.inputs[str(w)] for w in LOCALIZER_FILES)
            and told["versions"] == here["versions"]
            and told["device"]["type"] == here["device"]["type"]
        )

    finished = [done.parent / "out" for done in sorted(runs.glob("saliency-*/DONE"))]
    return [out / STORE.name for out in finished if same(out)]


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/saliency: the store, lost.csv and provenance."""
    params = Params.read()
    config = params.section("saliency", SaliencyConfig)
    made_by = recipe("saliency", "", params.reads, [*MANIFEST_FILES, *LOCALIZER_FILES], Path.cwd())
    arguments = {
        "config": config,
        "data": DATA.resolve(),
        "localizer": LOCALIZER.resolve(),
        "earlier": earlier_stores(made_by, launch.runs_folder(Path.cwd()), pick_device()),
    }
    launch.run(made_by, 0, work, arguments, SALIENCY.resolve())


if __name__ == "__main__":
    main()
