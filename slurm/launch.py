"""Runs a piece of long work exactly once, wherever it was interrupted, and publishes its result.

The work happens in a folder of its own (slurm/folder.py): in this process, or in a Slurm job that
this process submits, or finds, and waits for.
"""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import torch

from salmask.devices import pick_device
from salmask.errors import UserError
from salmask.files import write_json
from salmask.provenance import Recipe
from slurm import follow, profile, submission, worker
from slurm.errors import JobFailedError, OutOfMemoryError, full_disk_named
from slurm.folder import (
    Shared,
    Work,
    finish,
    git_head,
    is_done,
    job_in,
    label_of,
    locked,
    make_places,
    now,
    publish_files,
    read_job_json,
    runs_folder,
)


def run(
    recipe: Recipe,
    seed: int,
    work: Work,
    arguments: dict[str, Any],
    publish: Path,
    shared: Shared | None = None,
) -> None:
    """Does `work(job, **arguments)` unless it is done already, then copies its files to `publish`.

    recipe: what decides the result; its fingerprint names the folder, so that other parameters,
    inputs or code never meet this run's checkpoints. shared: how an array of jobs may share the
    work, as many as the profile has tasks. With SALMASK_SUBMIT_ONLY set, a job is
    submitted but not waited for, and nothing is published.
    """
    chosen = profile.chosen()
    label = label_of(recipe)
    folder = runs_folder(Path.cwd()) / label
    with full_disk_named(folder):
        _made(folder)
        when = "finished earlier"
        if chosen.executor != "local" and not is_done(folder):
            when = "finished"
            spec = worker.JobSpec(folder, Path.cwd(), recipe, chosen, seed, work, arguments, shared)
            if not _by_a_job(spec):
                return
        with locked(folder):
            if is_done(folder):
                print(f"{label}: {when}; publishing its result to {publish}", flush=True)
            elif chosen.executor == "local":
                _here(folder, recipe, chosen, seed, work, arguments)
            else:
                raise JobFailedError(f"{label}: its result changed while it was waited for")
            with full_disk_named(publish):
                publish_files(folder, publish)


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"the runs' folder {folder.parent} cannot be used ({error.strerror}: "
            f"{error.filename}): set SALMASK_RUNS to one that you may write in"
        ) from None


def _here(
    folder: Path,
    recipe: Recipe,
    chosen: profile.Profile,
    seed: int,
    work: Work,
    arguments: dict[str, Any],
) -> None:
    """The `local` executor: this process does the work."""
    torch.set_num_threads(chosen.cores())
    job = job_in(folder, recipe, seed, pick_device(), chosen)
    make_places(job)
    told = {"recipe": vars(recipe), "host": socket.gethostname(), "pid": os.getpid()}
    told |= {"git": git_head(), "started": now()}
    write_json(folder / "job.json", told)
    work(job, **arguments)
    finish(folder, job, recipe)
    write_json(folder / "job.json", told | {"finished": now()})


# ---------------------------------------------------------------------------------------- jobs


def _by_a_job(spec: worker.JobSpec) -> bool:
    """Has a job do the work, and waits for it unless that is not wanted; whether it did.

    A job that ran out of memory is followed by another as long as each saves more than was there,
    `max_requeues` times at most.
    """
    folder, recipe, label = spec.folder, spec.recipe, label_of(spec.recipe)
    apart, further = False, spec.chosen.max_requeues
    while True:
        before = _saved(folder)
        job = _submit_or_attach(spec)
        if os.environ.get("SALMASK_SUBMIT_ONLY"):
            return False
        try:
            if not job or follow.wait(folder, job, recipe, spec.chosen.executor):
                return True
        except OutOfMemoryError as error:
            if not further or _saved(folder) == before:
                raise
            further -= 1
            print(f"{error.message}\n{label}: it got further, so another goes on", flush=True)
            continue
        if apart:
            raise JobFailedError(f"{label}: its jobs ended again and again without a result")
        # The last two of an array can miss each other's end, where files show up late.
        print(f"{label}: all shares are done; another job puts them together", flush=True)
        apart = True


def _saved(folder: Path) -> set[tuple[str, int]]:
    """What a later try would go on from, with the times of its writing."""
    found = set()
    with contextlib.suppress(FileNotFoundError):  # a job that works there replaces and removes
        for path in (folder / "work").rglob("*"):
            if path.is_file() and path.suffix != ".partial":
                found.add((str(path), path.stat().st_mtime_ns))
    return found


def _submit_or_attach(spec: worker.JobSpec) -> str | None:
    """The id of the one job that does this work; None if it was done meanwhile."""
    folder, recipe, chosen = spec.folder, spec.recipe, spec.chosen
    label = label_of(recipe)
    with locked(folder, "launch.lock"):
        if is_done(folder):
            return None
        if job := _living(folder, recipe.fingerprint, chosen.executor):
            print(f"{label}: job {job} is at it already; attached to it", flush=True)
        else:
            job, count = submission.submit(spec)
            of = f", {count} tasks," if count > 1 else ""
            print(f"{label}: submitted as job {job}{of} to {_where(chosen)}", flush=True)
        if read_job_json(folder).get("job") != job:
            told: dict[str, Any] = {"recipe": vars(recipe), "job": job}
            told |= {"executor": chosen.executor}
            told |= {"host": socket.gethostname(), "git": git_head(), "submitted": now()}
            write_json(folder / "job.json", told)
        return job


def _where(chosen: profile.Profile) -> str:
    if chosen.executor == "local-jobs":
        return "this machine"
    return chosen.partition or "the default partition"


def _living(folder: Path, fingerprint: str, executor: str) -> str | None:
    """The run's job that is queued or runs, also when its launcher died before noting its id."""
    noted = str(read_job_json(folder).get("job", ""))
    for _ in range(follow.SETTLING_SECONDS):
        found = {
            job: status
            for job, status in follow.JOBS[executor].live(fingerprint).items()
            if job == noted or Path(status.log).is_relative_to(folder)
        }
        settled = [job for job, status in found.items() if status.state != "COMPLETING"]
        if settled or not found:
            return next(iter(settled), None)
        follow.nap(1)  # one that ends, or is put back into the queue: soon we know
    return None
