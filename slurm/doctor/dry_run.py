"""Checks with `sbatch --test-only` whether Slurm would accept the jobs of a profile."""

import re
from collections.abc import Iterator
from pathlib import Path

from salmask.findings import Finding
from slurm import scheduler
from slurm.folder import runs_folder
from slurm.profile import Profile

_PREFIXES = re.compile("^((sbatch|error|allocation failure|Batch job submission failed): )*")
_KINDS = {True: "training and evaluation", False: "saliency"}  # by `parallel` of launch.run


def dry_runs(profile: Profile) -> Iterator[Finding]:
    """Lets sbatch check a job of each kind, without submitting it."""
    same_shape = profile.tasks(parallel=True) == profile.tasks(parallel=False)
    kinds = {True: "all stages"} if same_shape else _KINDS
    for parallel, kind in kinds.items():
        script = submission_script(profile, parallel, [], "true")
        code, output = scheduler.run_command("sbatch", "--test-only", script=script)
        job = f"{kind} ({_shape(profile, parallel)})"
        if code:
            yield Finding("stop", f"{job}: sbatch refuses it: {sbatch_error(output)}")
            continue
        match = re.search(r"to start at (\S+) using .* on nodes (\S+)", output)
        start = f", to start at {match.group(1)} on {match.group(2)}" if match else ""
        yield Finding("ok", f"{job}: sbatch would accept it{start}")


def _shape(profile: Profile, parallel: bool) -> str:
    nodes, tasks = profile.tasks(parallel)
    parts = [f"{nodes} node{'s' * (nodes > 1)} x {tasks} task{'s' * (tasks > 1)}"]
    parts += [f"cpus {profile.cores()}"]
    parts += [f"gpus {min(profile.gpus, tasks)}"] if profile.gpus else []
    parts += [f"{profile.time_min} min"] if profile.time_min else []
    return ", ".join(parts)


def submission_script(
    profile: Profile, parallel: bool, setup: list[str], command: str, srun: bool = True
) -> str:
    """The script that submitit would give to sbatch for a job of the profile.

    Args:
        profile: where and how the job runs.
        parallel: whether several tasks share the job.
        setup: lines of bash before the command.
        command: the command of each task.
        srun: whether srun starts the command.
    """
    import submitit

    executor = submitit.SlurmExecutor(folder=runs_folder(Path.cwd()) / "doctor")
    executor.update_parameters(
        **profile.sbatch_options(parallel),
        job_name="salmask-doctor",
        comment=scheduler.job_comment("doctor"),
        setup=setup,
        use_srun=srun,
    )
    return str(executor._make_submission_file_text(command, uid="doctor"))


def sbatch_error(output: str) -> str:
    """The errors in sbatch's output, in one line and without prefixes."""
    lines = [_PREFIXES.sub("", line.strip()) for line in output.splitlines()]
    return "; ".join(filter(None, dict.fromkeys(lines))) or "sbatch gives no reason"
