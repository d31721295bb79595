"""`python -m slurm`: what a person asks about runs and their jobs, beside `dvc repro`."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import click

from salmask.errors import UserError
from salmask.params.names import run_names
from salmask.params.yaml_file import Params
from slurm import follow
from slurm.folder import is_done, read_job_json, runs_folder
from slurm.profile import chosen


class Commands(click.Group):
    """A user's mistake ends with its message and exit code 2."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


@click.group(cls=Commands)
def main() -> None:
    """Runs and their jobs, in SALMASK_RUNS or runs/."""


@main.command()
def status() -> None:
    """One line for every run: its state, where, and how far it is."""
    rows = [("run", "state", "job", "where", "checkpoint")]
    rows += [_row(folder) for folder in _folders()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


@main.command()
@click.argument("run")
@click.option("--follow", "on", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
def logs(run: str, on: bool) -> None:
    """Prints the log of a run's last job. RUN: its folder, or a part of its name."""
    folder = _find(run)
    job = read_job_json(folder).get("job")
    if not job:
        raise UserError(f"{folder.name} has no job: it ran where it was started")
    found = follow.logs_of(folder, job).values()
    if not found:
        raise UserError(f"job {job} has written no log yet: {follow.log_of(folder, job)}")
    with contextlib.ExitStack() as opened:
        streams = [opened.enter_context(log.open(errors="replace")) for log in found]
        for log, stream in zip(found, streams, strict=True):
            click.echo(f"{log}:", err=True)
            click.echo(stream.read(), nl=False)
        while on:
            for stream in streams:
                click.echo(stream.read(), nl=False)
            time.sleep(1)


@main.command()
@click.argument("run", required=False)
@click.option("--all", "every", is_flag=True, help="The jobs of all runs in this folder.")
def cancel(run: str | None, every: bool) -> None:
    """Stops a run's job. It saves a checkpoint, from which the next job goes on."""
    if every == bool(run):
        raise UserError("name one run, or say --all")
    folders = _folders() if every else [_find(run or "")]
    found = {
        job: folder
        for folder in folders
        if "executor" in read_job_json(folder) and (fingerprint := _fingerprint(folder))
        for job, status in _jobs(folder).live(fingerprint).items()
        if job == read_job_json(folder).get("job") or Path(status.log).is_relative_to(folder)
    }
    for job, folder in found.items():
        _jobs(folder).cancel(job)
        click.echo(f"job {job} ({folder.name}) is cancelled")
    if not found:
        click.echo("no job is queued or runs")


@main.command()
def submit() -> None:
    """Puts every pretraining of params.yaml on the cluster at once; `dvc repro` then collects."""
    if chosen().executor != "slurm":  # on one machine they would all run at the same time
        raise UserError("SALMASK_CLUSTER names no cluster: nothing to submit to")
    names, failed = run_names(Params.read()), []
    for name in names:
        command = [sys.executable, "-m", "stages.pretrain", "--run", name]
        done = subprocess.run(command, env=os.environ | {"SALMASK_SUBMIT_ONLY": "1"})
        failed += [name] if done.returncode else []
    click.echo(f"{len(names) - len(failed)} of {len(names)} runs are done or on the cluster")
    if failed:
        raise UserError(f"not submitted: {', '.join(failed)}")


def _row(folder: Path) -> tuple[str, str, str, str, str]:
    told = read_job_json(folder)
    job = str(told.get("job", ""))
    state, where = "stopped", str(told.get("host", ""))
    if job:
        found = _jobs(folder).ask(job, _fingerprint(folder))
        state = found.state.lower() if found else "Slurm does not answer"
        where = found.nodes if found else ""
        if found and found.state == "PENDING" and found.reason not in ("", "None"):
            state += f" ({found.reason})"
    if is_done(folder):
        state = "done"
    saved = sorted(path.stem for path in folder.glob("work/**/step-*.pt"))
    return folder.name, state, job, where, saved[-1] if saved else ""


def _jobs(folder: Path) -> ModuleType:
    """Who knows of a run's last job."""
    return follow.JOBS[read_job_json(folder).get("executor", "slurm")]


def _fingerprint(folder: Path) -> str:
    """Of the run in a folder: the end of its name."""
    return folder.name.rpartition("-")[2]


def _folders() -> list[Path]:
    runs = runs_folder(Path.cwd())
    found = sorted(path.parent for path in runs.glob("*/job.json"))
    if not found:
        raise UserError(f"no runs in {runs}: this is for the project's folder, or set SALMASK_RUNS")
    return found


def _find(run: str) -> Path:
    """The one run of that name, or with that part of it."""
    folders = _folders()
    found = [f for f in folders if f.name == Path(run).name] or [
        f for f in folders if run in f.name
    ]
    if len(found) != 1:
        listed = ", ".join(f.name for f in found or folders)
        raise UserError(f"{run} is {'several runs' if found else 'no run'}: {listed}")
    return found[0]


if __name__ == "__main__":
    main()
