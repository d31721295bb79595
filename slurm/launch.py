"""Runs a piece of long work exactly once, wherever it was interrupted, and publishes its result.

The work happens in a folder of its own (slurm/folder.py): in this process, or in a Slurm job that
this process submits, or finds, and waits for.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from salmask.devices import pick_device
from salmask.files import write_json
from salmask.provenance import Recipe
from slurm import follow, profile, scheduler, worker
from slurm.errors import JobFailedError, full_disk_named
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
    runs_folder,
    story,
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
        folder.mkdir(parents=True, exist_ok=True)
        when = "finished earlier"
        if chosen.executor == "slurm" and not is_done(folder):
            when = "finished"
            order = worker.Order(folder, Path.cwd(), recipe, chosen, seed, work, arguments, shared)
            job = _submit_or_attach(order)
            if os.environ.get("SALMASK_SUBMIT_ONLY"):
                return
            if job and not follow.wait(folder, job, recipe):
                # The last two of an array can miss each other's end, where files show up late.
                print(f"{label}: all shares are done; another job puts them together", flush=True)
                job = _submit_or_attach(order)
                if job and not follow.wait(folder, job, recipe):
                    raise JobFailedError(f"{label}: its jobs ended well, twice, without a result")
        with locked(folder):
            if is_done(folder):
                print(f"{label}: {when}; publishing its result to {publish}", flush=True)
            elif chosen.executor == "slurm":
                raise JobFailedError(
                    f"{label}: its result changed while it was waited for: {folder}"
                )
            else:
                _here(folder, recipe, chosen, seed, work, arguments)
            with full_disk_named(publish):
                publish_files(folder, publish)


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


# --------------------------------------------------------------------------------------- Slurm


def _submit_or_attach(order: worker.Order) -> str | None:
    """The id of the one job that does this work; None if it was done meanwhile."""
    folder, recipe, chosen = order.folder, order.recipe, order.chosen
    label = label_of(recipe)
    with locked(folder, "launch.lock"):
        if is_done(folder):
            return None
        if job := _living(folder, recipe.fingerprint):
            print(f"{label}: job {job} is at it already; attached to it", flush=True)
        else:
            job, count = _submit(order)
            where = chosen.partition or "the default partition"
            of = f", {count} tasks," if count > 1 else ""
            print(f"{label}: submitted as job {job}{of} to {where}", flush=True)
        if story(folder).get("job") != job:
            told: dict[str, Any] = {"recipe": vars(recipe), "job": job}
            told |= {"host": socket.gethostname(), "git": git_head(), "submitted": now()}
            write_json(folder / "job.json", told)
        return job


def _living(folder: Path, fingerprint: str) -> str | None:
    """The run's job that is queued or runs, also when its launcher died before noting its id."""
    noted = str(story(folder).get("job", ""))
    for _ in range(follow.SETTLING_SECONDS):
        found = {
            job: status
            for job, status in scheduler.live(fingerprint).items()
            if job == noted or Path(status.log).is_relative_to(folder)
        }
        settled = [job for job, status in found.items() if status.state != "COMPLETING"]
        if settled or not found:
            return next(iter(settled), None)
        follow.nap(1)  # one that ends, or is put back into the queue: soon we know
    return None


def _submit(order: worker.Order) -> tuple[str, int]:
    """Hands the work to Slurm: the job's id, and how many tasks share it as an array. Raises
    JobFailedError when sbatch refuses it."""
    import submitit

    folder, recipe, chosen = order.folder, order.recipe, order.chosen
    count = chosen.shares(order.shared.pieces) if order.shared else 1
    orders = [replace(order, number=n, count=count) for n in range(count)]
    if count == 1:
        orders = [replace(order, shared=None)]
    executor = submitit.SlurmExecutor(folder=folder / "jobs")
    executor.update_parameters(
        **chosen.sbatch(recipe.stage),
        job_name=label_of(recipe),
        comment=scheduler.mark(recipe.fingerprint),
        wckey="",
        stderr_to_stdout=True,
        setup=worker.setup(chosen),
        srun_args=["--open-mode=append", "--kill-on-bad-exit=1"],
    )
    with _outside_of_jobs():
        try:
            jobs = executor.map_array(worker.main, orders)
        except submitit.core.utils.FailedJobError as error:
            refused = str(error).strip()
            raise JobFailedError(f"sbatch refused {label_of(recipe)}: {refused}") from None
    return str(jobs[0].job_id).partition("_")[0], count


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that this process may itself run in: sbatch obeys them."""
    ours = {k: v for k, v in os.environ.items() if k.startswith("SLURM_") and k != "SLURM_CONF"}
    for name in ours:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ |= ours
