"""Submits a piece of work to Slurm, or starts it in separate processes on this machine."""

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cloudpickle

from slurm import scheduler
from slurm.errors import JobFailedError
from slurm.folder import CONTROLLER_LOG, run_label
from slurm.job_spec import JobSpec
from slurm.profile import Profile

_YEAR_MINUTES = 365 * 24 * 60


def submit(spec: JobSpec) -> tuple[str, int]:
    """Submits the work. Returns the job's id and the number of jobs in its array (1 for no array).

    Raises JobFailedError when sbatch refuses the job.
    """
    if spec.profile.executor == "local-jobs":
        return _start_locally(spec), 1
    size = spec.profile.array_size(spec.array.pieces) if spec.array else 1
    if size > 1 and (limit := scheduler.max_array_size()):
        size = min(size, limit)
    return _sbatch(spec, size), size


def setup_lines(profile: Profile, project: Path) -> list[str]:
    """The lines of bash that a Slurm job runs before its tasks.

    They set the profile's variables, run the profile's `setup`, and make the project's folder the
    current folder and the first entry of Python's path: `stages` and `slurm` are imported from it.
    A line that fails ends the job and is printed.
    """
    folder = shlex.quote(str(project))
    return [
        """trap 'echo "setup failed with exit code $?: $BASH_COMMAND"; exit 1' ERR""",
        *(f"export {name}={shlex.quote(v)}" for name, v in profile.environment.items()),
        *profile.setup,
        "trap - ERR",
        f"cd {folder}",
        f'export PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]


def _sbatch(spec: JobSpec, size: int) -> str:
    import submitit  # inside the functions that use it, as everywhere: stages import this module

    from slurm import worker

    executor = submitit.SlurmExecutor(folder=spec.folder / "jobs", python=_python())
    executor.update_parameters(
        **spec.profile.sbatch_options(spec.parallel),
        job_name=run_label(spec.recipe),
        comment=scheduler.job_comment(spec.recipe.fingerprint),
        setup=setup_lines(spec.profile, spec.project),
        srun_args=[
            "--open-mode=append",
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={spec.profile.cores()}",  # since 22.05, srun ignores sbatch's value
        ],
    )
    array = spec.array if size > 1 else None
    specs = [replace(spec, array=array, index=index, size=size) for index in range(size)]
    with _environment(scheduler.environment_outside_jobs()):
        try:
            jobs = executor.map_array(worker.main, *zip(*map(_pickled, specs), strict=True))
        except submitit.core.utils.FailedJobError as error:
            raise JobFailedError(
                f"sbatch refused {run_label(spec.recipe)}: {str(error).strip()}"
            ) from None
    return str(jobs[0].job_id).partition("_")[0]


def _python() -> str:
    """The command in front of submitit's options for Python."""
    return f"{shlex.quote(sys.executable)} -u -m slurm.task"


def _pickled(spec: JobSpec) -> tuple[bytes, str]:
    """The arguments of slurm/worker.py's `main`."""
    content = cloudpickle.dumps(spec)
    return content, hashlib.sha256(content).hexdigest()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replaces the environment of this process, which submitit passes on to the job."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _start_locally(spec: JobSpec) -> str:
    import submitit

    from slurm import worker

    profile, project = spec.profile, shlex.quote(str(spec.project))
    _, tasks = profile.tasks(spec.parallel)
    gpus = min(profile.gpus, tasks)
    # Not AutoExecutor, which would use Slurm where srun is installed. Without visible_gpus,
    # LocalExecutor would use the first GPUs of the machine.
    executor = submitit.LocalExecutor(folder=spec.folder / "jobs", python=_python())
    executor.update_parameters(
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        visible_gpus=_visible_gpus(gpus),
        timeout_min=profile.time_min or _YEAR_MINUTES,
        signal_delay_s=profile.signal_seconds,
        stderr_to_stdout=True,
        setup=(
            "trap '' INT HUP",  # the job survives Ctrl-C and a closed terminal
            "trap : EXIT",  # without a trap, the shell may become the controller
            f"exec >{shlex.quote(str(spec.folder / 'jobs' / CONTROLLER_LOG))} 2>&1",
            *profile.setup,
            f"cd {project}",
            f'export PYTHONPATH={project}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ),
    )
    with _environment(os.environ | profile.environment):
        return str(executor.submit(worker.main, *_pickled(replace(spec, array=None))).job_id)


def _visible_gpus(count: int) -> list[int]:
    """The numbers of the first GPUs that this process may use."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not count or not variable:
        return list(range(count))
    names = [name.strip() for name in variable.split(",")]
    if not all(name.isdigit() for name in names) or len(names) < count:
        raise JobFailedError(
            f"CUDA_VISIBLE_DEVICES={variable}: the profile requests {count} GPUs; list at least as "
            "many, by number (jobs on this machine cannot select GPUs by UUID)"
        )
    return [int(name) for name in names[:count]]
