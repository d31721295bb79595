"""Hands a piece of work to Slurm, or to processes of their own on this machine."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import submitit

from slurm import scheduler, worker
from slurm.errors import JobFailedError
from slurm.folder import FIRST_WORDS, label_of
from slurm.worker import JobSpec

_YEAR = 365 * 24 * 60


def submit(spec: JobSpec) -> tuple[str, int]:
    """The job's id, and how many elements of an array share the work. Raises JobFailedError when
    sbatch refuses it."""
    if spec.chosen.executor == "local-jobs":
        return _start_here(spec), 1
    count = spec.chosen.shares(spec.shared.pieces) if spec.shared else 1
    return _sbatch(spec, count), count


def _sbatch(spec: JobSpec, count: int) -> str:
    executor = submitit.SlurmExecutor(folder=spec.folder / "jobs")
    executor.update_parameters(
        **spec.chosen.sbatch(spec.recipe.stage),
        job_name=label_of(spec.recipe),
        comment=scheduler.mark(spec.recipe.fingerprint),
        wckey="",
        stderr_to_stdout=True,
        setup=worker.setup(spec.chosen),
        srun_args=[
            "--open-mode=append",
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={spec.chosen.cores()}",  # srun takes it from nowhere since 22.05
        ],
    )
    if count == 1:
        specs = [replace(spec, shared=None)]
    else:
        specs = [replace(spec, number=number, count=count) for number in range(count)]
    with _environment(scheduler.outside()):
        try:
            jobs = executor.map_array(worker.main, specs)
        except submitit.core.utils.FailedJobError as error:
            refused = str(error).strip()
            raise JobFailedError(f"sbatch refused {label_of(spec.recipe)}: {refused}") from None
    return str(jobs[0].job_id).partition("_")[0]


@contextmanager
def _environment(there: dict[str, str]) -> Iterator[None]:
    """With these variables and no others: submitit hands on what it finds."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ |= there
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _start_here(spec: JobSpec) -> str:
    chosen = spec.chosen
    _, tasks = chosen.tasks(spec.recipe.stage)
    gpus = min(chosen.gpus, tasks)
    # The executor itself, for AutoExecutor would take Slurm where there is an srun; and it hides
    # all GPUs that it is not told of.
    executor = submitit.LocalExecutor(folder=spec.folder / "jobs")
    executor.update_parameters(
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        visible_gpus=_visible_gpus(gpus),
        timeout_min=chosen.time_min or _YEAR,
        signal_delay_s=chosen.signal_seconds,
        stderr_to_stdout=True,
        setup=chosen.setup,
    )
    there = dict(os.environ) | chosen.environment
    with _environment(there), _detached(spec.folder / "jobs" / FIRST_WORDS):
        return str(executor.submit(worker.main, replace(spec, shared=None)).job_id)


@contextmanager
def _detached(log: Path) -> Iterator[None]:
    """What starts in here outlives us: Ctrl-C and a closed terminal are not for it, nor does it
    keep our output open, on whose end others may wait."""
    handlers = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    ours = {number: os.dup(number) for number in (1, 2)}
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("wb") as stream:
        for number in ours:
            os.dup2(stream.fileno(), number)
    try:
        yield
    finally:
        for number, kept in ours.items():
            os.dup2(kept, number)
            os.close(kept)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _visible_gpus(count: int) -> list[int]:
    """The first of those that this process may use itself, by number."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not count or not named:
        return list(range(count))
    given = [name.strip() for name in named.split(",")]
    if not all(name.isdigit() for name in given) or len(given) < count:
        raise JobFailedError(
            f"CUDA_VISIBLE_DEVICES={named}: the profile asks for {count} GPUs, and jobs on this "
            "machine know them by numbers only"
        )
    return [int(name) for name in given[:count]]
