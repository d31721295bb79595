"""Runs a piece of long work once, resumes it where it was interrupted, and publishes its result.

The work is done in the run's folder (slurm/folder.py): by this process, or by a job that this
process submits, or finds already submitted, and waits for.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from salmask.errors import UserError
from salmask.files import write_json
from salmask.provenance import Recipe, changed_files, changed_params
from slurm import follow, submission
from slurm.errors import JobFailedError, OutOfMemoryError, named_folder_errors
from slurm.folder import (
    finish,
    is_done,
    job_metadata,
    locked,
    make_folders,
    make_job,
    now,
    publish_files,
    read_job_json,
    recorded_failure,
    run_label,
    runs_folder,
)
from slurm.job_spec import JobArray, JobSpec, Work
from slurm.profile import Profile, read_profile

_COMPLETING_SECONDS = 90  # the maximum time that a job is in the state COMPLETING


def run(
    recipe: Recipe,
    seed: int,
    work: Work,
    arguments: dict[str, Any],
    publish: Path,
    *,
    parallel: bool = False,
    array: JobArray | None = None,
) -> None:
    """Calls `work(job, **arguments)` unless its result exists, then copies the files to `publish`.

    With SALMASK_SUBMIT_ONLY set, the job is submitted, and nothing is waited for or published.

    Args:
        recipe: everything that decides the result. Its fingerprint is part of the name of the run's
            folder, so that checkpoints of other parameters, inputs or code are never used.
        seed: the seed of the run.
        work: the function that does the work; it must be importable or picklable.
        arguments: its keyword arguments.
        publish: the output folder of the stage. Its content is replaced.
        parallel: whether all tasks of the profile share the work; else a job has one task.
        array: how the jobs of an array share the work; None for one job.
    """
    profile = read_profile()
    label = run_label(recipe)
    folder = runs_folder(Path.cwd()) / label
    spec = JobSpec(folder, Path.cwd(), recipe, profile, seed, work, arguments, parallel, array)
    with named_folder_errors(folder):
        _make_run_folder(folder)
    with recorded_failure(folder), named_folder_errors(folder):
        state = "finished earlier"
        if profile.executor != "local" and not is_done(folder):
            state = "finished"
            if not _run_in_job(spec):
                return
        # A finished result does not change any more, and its lock may belong to another person.
        with contextlib.nullcontext() if is_done(folder) else locked(folder):
            if is_done(folder):
                print(f"{label}: {state}; publishing its result to {publish}", flush=True)
            elif profile.executor == "local":
                _run_here(spec)
            else:
                raise JobFailedError(f"{label}: its result changed before it was published")
            _check_params(spec)
            with named_folder_errors(publish):
                publish_files(folder, publish)


def _make_run_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"the runs' folder {folder.parent} cannot be used ({error.strerror}: "
            f"{error.filename}): set SALMASK_RUNS to a folder where you have write permission"
        ) from None


def _run_here(spec: JobSpec) -> None:
    """Does the work in this process (the executor `local`)."""
    from salmask.devices import pick_device

    job = make_job(spec, pick_device())
    make_folders(job)
    metadata = job_metadata(spec.recipe, pid=os.getpid(), started=now())
    write_json(spec.folder / "job.json", metadata)
    spec.work(job, **spec.arguments)
    if changed := changed_files(spec.recipe, spec.project, spec.project):
        raise UserError(
            f"{' and '.join(changed)} changed while {run_label(spec.recipe)} ran, so that its "
            "result is not finished: run `dvc repro` again"
        )
    finish(spec.folder, job, spec.recipe)
    write_json(spec.folder / "job.json", metadata | {"finished": now()})


def _check_params(spec: JobSpec) -> None:
    """Raises UserError if parameters differ from those of the result.

    DVC reads params.yaml when a stage has ended, and would record the new values for this result.
    """
    if changed := changed_params(spec.recipe, spec.project):
        raise UserError(
            f"params.yaml: {', '.join(changed)} changed while {run_label(spec.recipe)} ran. Its "
            f"result is kept in {spec.folder} and is not published. Run `dvc repro` again for the "
            "new values, or restore the old ones first to publish this result"
        )


# ---------------------------------------------------------------------------------------- jobs


def _run_in_job(spec: JobSpec) -> bool:
    """Submits a job and waits for it. Returns False if SALMASK_SUBMIT_ONLY says not to wait.

    A job that ran out of memory is submitted again if it saved more than the attempt before it, up
    to `max_requeues` times.
    """
    folder, label = spec.folder, run_label(spec.recipe)
    incomplete, retries = False, spec.profile.max_requeues
    while True:
        saved_before = _saved_files(folder)
        job = _submit_or_attach(spec)
        if os.environ.get("SALMASK_SUBMIT_ONLY"):
            return False
        try:
            if not job or follow.wait(folder, job, spec.recipe, spec.profile.executor):
                return True
        except OutOfMemoryError as error:
            if not retries or _saved_files(folder) == saved_before:
                raise
            retries -= 1
            print(f"{error.message}\n{label}: it made progress; submitting it again", flush=True)
            continue
        if incomplete:
            raise JobFailedError(f"{label}: two jobs in a row ended without a result")
        # Where files appear late, the last two jobs of an array may not see each other's shares.
        print(f"{label}: all shares are done; submitting a job to complete the result", flush=True)
        incomplete = True


def _saved_files(folder: Path) -> set[tuple[str, int]]:
    """The files from which a later attempt continues, with their modification times."""
    files = set()
    with contextlib.suppress(FileNotFoundError):  # a running job replaces and removes files
        for path in (folder / "work").rglob("*"):
            if path.is_file() and path.suffix != ".partial":
                files.add((str(path), path.stat().st_mtime_ns))
    return files


def _submit_or_attach(spec: JobSpec) -> str | None:
    """Submits a job unless the run has one. Returns its id; None if the run is done already."""
    folder, recipe, profile = spec.folder, spec.recipe, spec.profile
    label = run_label(recipe)
    with locked(folder, "launch.lock"):
        if is_done(folder):
            return None
        if job := _active_job(folder, recipe.fingerprint, profile.executor):
            print(f"{label}: attached to job {job}, which exists already", flush=True)
        else:
            job, count = submission.submit(spec)
            tasks = f", {count} tasks," if count > 1 else ""
            print(f"{label}: submitted as job {job}{tasks} to {_target(profile)}", flush=True)
        if read_job_json(folder).get("job") != job:
            metadata = {"job": job, "executor": profile.executor, "submitted": now()}
            write_json(folder / "job.json", job_metadata(recipe, **metadata))
        return job


def _target(profile: Profile) -> str:
    if profile.executor == "local-jobs":
        return "this machine"
    return profile.partition or "the default partition"


def _active_job(folder: Path, fingerprint: str, executor: str) -> str | None:
    """The run's job that waits or runs."""
    for _ in range(_COMPLETING_SECONDS):
        jobs = follow.active_jobs(folder, fingerprint, executor)
        active = [job for job, status in jobs.items() if status.state != "COMPLETING"]
        if active or not jobs:
            return next(iter(active), None)
        time.sleep(1)  # the job either ends or returns to the queue
    return None
