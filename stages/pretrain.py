"""One pretraining run of `runs:` -> an encoder."""

import click

from salmask.artifacts import DATA, LOCALIZER_SPEC, MANIFEST_FILES, PRETRAIN, STORE
from salmask.errors import UserError
from salmask.evaluate.probe import Probe
from salmask.job import Job
from salmask.params.overlay import run_seed
from salmask.params.probe import ProbeConfig, read_probe
from salmask.params.run import RunConfig
from salmask.params.yaml_file import Params
from salmask.stored_files import read_json
from salmask.train import pretrain as loop
from salmask.train.check_run import check_run
from slurm import launch
from stages.errors import Stage
from stages.provenance import stage_recipe


def work(
    job: Job, config: RunConfig, inputs: loop.Inputs, probe: ProbeConfig | None = None
) -> None:
    """Trains, from the newest checkpoint if there is one."""
    loop.pretrain(config, inputs, job, Probe(config, probe, job))


@click.command(cls=Stage)
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
def main(name: str) -> None:
    """Writes artifacts/pretrain/<run>: encoder.safetensors, encoder.json, projector.safetensors,
    history.csv, and probe.csv if params.yaml has the section `probe`."""
    params = Params.read()
    config, seed = check_run(params, name), run_seed(params, name)
    files = [*MANIFEST_FILES, LOCALIZER_SPEC, STORE]
    made_by = stage_recipe(params, "pretrain", name, files)
    if not LOCALIZER_SPEC.is_file():
        raise UserError(f"{LOCALIZER_SPEC} is missing: run `dvc repro localizer`")
    localizer = read_json(LOCALIZER_SPEC)
    inputs = loop.Inputs(DATA.absolute(), STORE.absolute(), localizer)
    arguments = {"config": config, "inputs": inputs, "probe": read_probe(params)}
    launch.run(made_by, seed, work, arguments, (PRETRAIN / name).absolute(), parallel=True)


if __name__ == "__main__":
    main()
