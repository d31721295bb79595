"""`python -m slurm`: the state, logs and jobs of runs."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import click
from tabulate import tabulate

from salmask import collapse
from salmask.errors import UserError
from slurm import follow, scheduler
from slurm.folder import FAILURE, is_done, is_locked, read_job_json, runs_folder


class Commands(click.Group):
    """A group of commands. A UserError ends them with its message and exit code 2."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


@click.group(cls=Commands)
def main() -> None:
    """Shows and controls the runs in SALMASK_RUNS or runs/."""


@main.command()
def status() -> None:
    """Shows each run's state, its nodes and its newest checkpoint. Also prints why runs failed, and
    names runs that have collapsed."""
    headers = ["run", "state", "job", "where", "checkpoint"]
    folders = _run_folders()
    rows = [_status_row(folder) for folder in folders]
    click.echo(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))
    for folder, (_, state, *_) in zip(folders, rows, strict=True):
        if state == "failed":
            message = (folder / FAILURE).read_text(encoding="utf-8", errors="replace").strip()
            click.echo(f"error: {folder.name}: {message}")
        if not folder.name.startswith("pretrain-"):
            continue
        try:
            signs = collapse.signs_of_run(folder / "out")
        except UserError as error:  # a damaged curve
            click.echo(f"error: {folder.name}: {error}")
        else:
            for text in signs.values():
                click.echo(f"warning: {folder.name}: {text}")


@main.command()
@click.argument("run")
@click.option("--follow", "keep_open", is_flag=True, help="Keep printing new lines until Ctrl-C.")
def logs(run: str, keep_open: bool) -> None:
    """Prints the log of a run's last job. RUN: the run's folder, or a part of its name."""
    folder = _find_run(run)
    job = read_job_json(folder).get("job")
    if not job:
        raise UserError(f"{folder.name} has no job: it ran in the process that started it")
    files = follow.existing_logs(folder, job).values()
    if not files:
        raise UserError(f"job {job} has written no log yet: {follow.log_path(folder, job)}")
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(log.open(encoding="utf-8", errors="replace")) for log in files
        ]
        for log, stream in zip(files, streams, strict=True):
            click.echo(f"{log}:", err=True)
            click.echo(stream.read(), nl=False)
        while keep_open:
            for stream in streams:
                click.echo(stream.read(), nl=False)
            time.sleep(1)


@main.command()
@click.argument("run", required=False)
@click.option("--all", "all_runs", is_flag=True, help="Cancel the jobs of all runs in the folder.")
def cancel(run: str | None, all_runs: bool) -> None:
    """Cancels a run's job. The job saves a checkpoint, from which the next job continues."""
    if all_runs == bool(run):
        raise UserError("give either the name of a run or --all")
    cancelled = False
    for folder in _run_folders() if all_runs else [_find_run(run or "")]:
        metadata, fingerprint = read_job_json(folder), _fingerprint(folder)
        if "executor" not in metadata or not fingerprint:
            continue
        for job in follow.active_jobs(folder, fingerprint, metadata["executor"]):
            follow.BACKENDS[metadata["executor"]].cancel(job)
            click.echo(f"cancelled job {job} ({folder.name})")
            cancelled = True
    if not cancelled:
        click.echo("no job waits or runs")


@main.command()
def submit() -> None:
    """Submits all pretraining runs of params.yaml; `dvc repro` collects their results later."""
    from salmask.params.names import run_names
    from salmask.params.yaml_file import Params
    from slurm.profile import read_profile

    if read_profile().executor != "slurm":  # one machine would start all runs at the same time
        raise UserError("set SALMASK_CLUSTER to a profile with `executor: slurm`")
    names, failed = run_names(Params.read()), []
    for name in names:
        command = [sys.executable, "-m", "stages.pretrain", "--run", name]
        done = subprocess.run(command, env=os.environ | {"SALMASK_SUBMIT_ONLY": "1"})
        failed += [name] if done.returncode else []
    click.echo(f"{len(names) - len(failed)} of {len(names)} runs are done or on the cluster")
    if failed:
        raise UserError(f"not submitted: {', '.join(failed)}")


def _status_row(folder: Path) -> tuple[str, str, str, str, str]:
    metadata = read_job_json(folder)
    job = str(metadata.get("job", ""))
    state, where = "stopped", str(metadata.get("host", ""))
    if job:
        backend = follow.BACKENDS[metadata.get("executor", "slurm")]
        status = backend.job_status(job, _fingerprint(folder))
        state = status.state.lower() if status else "Slurm does not answer"
        where = status.nodes if status else ""
        if status and status.state == "PENDING":
            state += status.because
    elif is_locked(folder):
        state = "running"
    if state in ("stopped", scheduler.NOT_FOUND.lower()) and (folder / FAILURE).is_file():
        state = "failed"
    if is_done(folder):
        state = "done"
    checkpoints = sorted(path.stem for path in folder.glob("work/**/step-*.pt"))
    return folder.name, state, job, where, checkpoints[-1] if checkpoints else ""


def _fingerprint(folder: Path) -> str:
    """The last part of the name of a run's folder."""
    return folder.name.rpartition("-")[2]


def _run_folders() -> list[Path]:
    runs = runs_folder(Path.cwd())
    folders = sorted(path.parent for path in runs.glob("*/job.json"))
    if not folders:
        raise UserError(f"no runs in {runs}: change to the project's folder, or set SALMASK_RUNS")
    return folders


def _find_run(run: str) -> Path:
    """The only run with that name, or with that text in its name. Raises UserError."""
    folders = _run_folders()
    exact = [folder for folder in folders if folder.name == Path(run).name]
    matches = exact or [folder for folder in folders if run in folder.name]
    if len(matches) != 1:
        names = ", ".join(folder.name for folder in matches or folders)
        raise UserError(f"{'several runs match' if matches else 'no run matches'} {run}: {names}")
    return matches[0]


if __name__ == "__main__":
    main()
