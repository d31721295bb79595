"""A stage that takes seconds: it counts and saves its count. Run as a command, like a stage."""

import os
import signal
import time
from pathlib import Path

import click

from salmask.code_digests import code_digest
from salmask.errors import UserError
from salmask.files import tree_digest
from salmask.job import Job
from salmask.provenance import Recipe
from slurm import follow, launch
from slurm.job_spec import JobArray
from stages.errors import Stage

STEP_SECONDS, PIECES = 0.1, 7
POLL_SECONDS, STATUS_SECONDS = 0.2, 0.5  # shorter than a launcher's, to save time


def work(job: Job, steps: int, fault: str) -> None:
    """Counts to `steps` in job.work/count, in the first task; other tasks raise an error.

    Stops counting earlier when the project's folder has a file `finish_now`.

    Args:
        job: where the work runs.
        steps: the last count.
        fault: what goes wrong at half of the steps.
    """
    from salmask.distributed import rank

    if fault == "blocked" and not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        block(job)
    if rank() and fault == "blocked":
        return
    if fault == "second killed":
        if rank():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # as in a collective operation
    if rank():
        raise ValueError("the second task is broken")
    if fault == "memory at start":
        use_too_much_memory()
    file = job.work / "count"
    count = int(file.read_text()) if file.exists() else 0
    print(f"counts from {count}", flush=True)
    with (job.work / "starts").open("a") as stream:
        stream.write(f"{count}\n")
    while count < steps and not Path("finish_now").exists():
        time.sleep(STEP_SECONDS)
        count += 1
        partial = file.with_suffix(".partial")
        partial.write_text(str(count))
        partial.replace(file)
        if count == steps // 2:
            if fault == "exception":
                raise ValueError("the counting stage is broken")
            if fault == "user error":
                raise UserError("the counting stage has wrong options")
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "memory":
                use_too_much_memory()
    pieces = sorted(job.work.glob("piece-*"))
    (job.out / "pieces.txt").write_text("".join(f"{p.name} {p.read_text()}\n" for p in pieces))
    (job.out / "count.txt").write_text(f"{count}\n")
    (job.out / "starts.txt").write_text((job.work / "starts").read_text())
    (job.out / "python_path.txt").write_text(os.environ.get("PYTHONPATH", ""))


def block(job: Job) -> None:
    """Sleeps in all tasks. The first one ignores SIGUSR2, as in a collective operation."""
    from salmask.distributed import rank

    if rank() == 0:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        (job.work / "starts").write_text("blocked\n")
    time.sleep(600)


def use_too_much_memory() -> None:
    """Allocates more memory than the tests' profile requests."""
    block_of_memory = bytearray(os.urandom(1 << 20)) * 3500
    time.sleep(30)
    del block_of_memory


def fill(job: Job, index: int, size: int, steps: int, fault: str) -> bool:
    """Writes every `size`-th of PIECES pieces, each in half of the time of `steps`.

    Args:
        job: where the work runs.
        index: which share this is.
        size: the number of shares.
        steps: as in `work`.
        fault: `share exception` raises an error in the second share, once. `late files` returns in
            the first job as if the other shares' files were not visible yet.
    """
    node = os.environ["SLURMD_NODENAME"]
    for piece in range(index, PIECES, size):
        time.sleep(steps * STEP_SECONDS / 2)
        raised = job.work / "raised"
        if fault == "share exception" and index == 1 and not raised.exists():
            raised.touch()
            raise ValueError("the second share is broken")
        (job.work / f"piece-{piece}").write_text(f"of {index} on {node}")
        print(f"piece {piece} of {PIECES}", flush=True)
    if fault == "late files" and len(list(job.work.parent.glob("jobs/*_submission.sh"))) == 1:
        return False
    return len(list(job.work.glob("piece-*"))) == PIECES


@click.command(cls=Stage)
@click.option("--name", required=True)
@click.option("--steps", default=10)
@click.option("--fault", default="")
@click.option("--parallel", is_flag=True)
@click.option("--array", "as_array", is_flag=True)
@click.option("--input", "inputs", multiple=True)
def main(
    name: str, steps: int, fault: str, parallel: bool, as_array: bool, inputs: tuple[str, ...]
) -> None:
    follow._POLL_SECONDS, follow._STATUS_SECONDS = POLL_SECONDS, STATUS_SECONDS
    root = Path.cwd()
    digests = {path: tree_digest(root / path) for path in inputs}
    modules = ("stages.errors",)
    code = code_digest(modules, Path(launch.__file__).parents[1])
    recipe = Recipe("counting", name, modules, code, {}, digests)
    launch.run(
        recipe,
        0,
        work,
        {"steps": steps, "fault": fault},
        root / "published" / name,
        parallel=parallel,
        array=JobArray(fill, PIECES) if as_array else None,
    )


if __name__ == "__main__":
    main()
