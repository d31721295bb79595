"""Computes the SCDA activation maps of all images, and stores them in a Zarr group."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from salmask.artifacts import DATA, LOCALIZER, LOCALIZER_FILES, MANIFEST_FILES, SALIENCY, STORE
from salmask.data import manifest
from salmask.data.manifest import Manifest
from salmask.files import link_or_copy, parse_json, write_rows
from salmask.job import Job
from salmask.params.saliency import SaliencyConfig
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, Recipe, environment
from salmask.saliency import maps, stored_localizer
from salmask.saliency.store_rows import StorePlan
from salmask.saliency.trunks import Trunk
from slurm import launch
from slurm.folder import runs_folder
from slurm.job_spec import JobArray
from stages.errors import Stage
from stages.provenance import stage_recipe


@dataclass(frozen=True)
class SaliencyTask:
    """The inputs of the stage.

    Args:
        config: the section `saliency:`.
        data: folder of the manifest.
        localizer: folder of the localizer.
        made_by: recipe of the stage, to find earlier stores that can be reused.
        runs: folder of all runs, where earlier stores are.
    """

    config: SaliencyConfig
    data: Path
    localizer: Path
    made_by: Recipe
    runs: Path

    def load(self, job: Job) -> tuple[Manifest, Trunk, StorePlan]:
        """The manifest, the localizer, and the plan of the store."""
        rows = manifest.load(self.data)
        spec, trunk = stored_localizer.load(self.localizer, job.device)
        return rows, trunk, maps.plan(rows, self.config, spec)


def share(job: Job, number: int, count: int, task: SaliencyTask) -> bool:
    """Computes every `count`-th shard from `number` on. Returns whether all shards are done."""
    rows, trunk, plan = task.load(job)
    store, earlier = job.work / STORE.name, earlier_stores(task, job.device)
    return maps.fill(store, plan, rows, trunk, task.config, job, earlier, (number, count))


def work(job: Job, task: SaliencyTask) -> None:
    """Computes the missing shards in job.work, completes the store and links it into job.out."""
    rows, trunk, plan = task.load(job)
    store, earlier = job.work / STORE.name, earlier_stores(task, job.device)
    maps.fill(store, plan, rows, trunk, task.config, job, earlier)
    lost = maps.finish(store, plan, rows, trunk, task.config, job).tolist()
    shutil.rmtree(job.out / STORE.name, ignore_errors=True)
    shutil.copytree(store, job.out / STORE.name, copy_function=link_or_copy)
    listed = [{"id": row, "path": rows.paths[row]} for row in lost]
    write_rows(job.out / "lost.csv", listed, ("id", "path"))
    if lost:
        print(
            f"{len(lost)} images vanished or changed since prepare, and have empty maps: see "
            f"{SALIENCY}/lost.csv; `dvc repro` updates manifest and maps",
            flush=True,
        )


def earlier_stores(task: SaliencyTask, device: torch.device) -> list[Path]:
    """Finished stores with the same code, parameters, localizer, versions and type of device.

    Their maps of the same images are the same, and need not be computed again.
    """
    here, made_by = environment(device), task.made_by

    def same(out: Path) -> bool:
        try:
            recorded: dict[str, Any] = parse_json((out / FILE_NAME).read_bytes())
            return bool(
                (recorded["code"], recorded["params"]) == (made_by.code, made_by.params)
                and all(
                    recorded["inputs"].get(str(file)) == made_by.inputs[str(file)]
                    for file in LOCALIZER_FILES
                )
                and recorded["versions"] == here["versions"]
                and recorded["device"]["type"] == here["device"]["type"]
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # removed or damaged
            return False

    finished = [done.parent / "out" for done in sorted(task.runs.glob("saliency-*/DONE"))]
    return [out / STORE.name for out in finished if same(out)]


@click.command(cls=Stage)
def main() -> None:
    """Writes artifacts/saliency: the store, lost.csv and provenance."""
    params = Params.read()
    config = params.section("saliency", SaliencyConfig)
    made_by = stage_recipe(params, "saliency", inputs=[*MANIFEST_FILES, *LOCALIZER_FILES])
    rows = len(manifest.load(DATA))
    runs = runs_folder(Path.cwd())
    task = SaliencyTask(config, DATA.absolute(), LOCALIZER.absolute(), made_by, runs)
    array = JobArray(share, -(-rows // config.rows_per_shard(rows)))
    launch.run(made_by, 0, work, {"task": task}, SALIENCY.absolute(), array=array)


if __name__ == "__main__":
    main()
