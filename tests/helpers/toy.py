"""A stage that takes seconds: counts, and saves where it is. Run as a command, like a stage."""

import os
import signal
import time
from pathlib import Path

import click

from salmask.code_digests import code_digest
from salmask.distributed import rank
from salmask.errors import UserError
from salmask.job import Job
from salmask.provenance import Recipe, tree_digest
from slurm import launch
from slurm.folder import Shared
from stages.errors import readable_errors

TICK, PIECES = 0.1, 7


def work(job: Job, ticks: int, trouble: str) -> None:
    """Counts to `ticks` in job.work/count, in the first task; a second one is broken. trouble: what
    happens half-way."""
    if trouble == "deaf" and not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        wait_for_each_other(job)
    if rank() and trouble == "deaf":
        return
    if rank():
        raise ValueError("the second task is broken")
    if trouble == "eats at once":
        eat()
    place = job.work / "count"
    count = int(place.read_text()) if place.exists() else 0
    print(f"counts from {count}", flush=True)
    with (job.work / "starts").open("a") as stream:
        stream.write(f"{count}\n")
    while count < ticks:
        time.sleep(TICK)
        count += 1
        partial = place.with_suffix(".partial")
        partial.write_text(str(count))
        partial.replace(place)
        if count == ticks // 2:
            if trouble == "raises":
                raise ValueError("the toy is broken")
            if trouble == "mistake":
                raise UserError("the toy is not for this")
            if trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "eats":
                eat()
    pieces = sorted(job.work.glob("piece-*"))
    (job.out / "pieces.txt").write_text("".join(f"{p.name} {p.read_text()}\n" for p in pieces))
    (job.out / "count.txt").write_text(f"{count}\n")
    (job.out / "starts.txt").write_text((job.work / "starts").read_text())


def wait_for_each_other(job: Job) -> None:
    """The first task as in a collective, where it hears no signal; the other does."""
    if rank() == 0:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        (job.work / "starts").write_text("deaf\n")
    time.sleep(600)


def eat() -> None:
    """Takes more memory than the profile of the tests asks for."""
    kept = bytearray(os.urandom(1 << 20)) * 3500
    time.sleep(30)
    del kept


def fill(job: Job, number: int, count: int, ticks: int, trouble: str) -> bool:
    """Writes every `count`-th of PIECES pieces, each in half the time of `ticks`. trouble: what
    befalls the second share; `late`: what befalls all of the first job."""
    node = os.environ["SLURMD_NODENAME"]
    for piece in range(number, PIECES, count):
        time.sleep(ticks * TICK / 2)
        if trouble == "share raises" and number == 1 and not job.work.joinpath("raised").exists():
            job.work.joinpath("raised").touch()
            raise ValueError("the second share is broken")
        (job.work / f"piece-{piece}").write_text(f"of {number} on {node}")
        print(f"piece {piece} of {PIECES}", flush=True)
    if trouble == "late" and len(list(job.work.parent.glob("jobs/*_submission.sh"))) == 1:
        return False  # as if the others' files were not to be seen yet
    return len(list(job.work.glob("piece-*"))) == PIECES


@click.command()
@click.option("--name", required=True)
@click.option("--ticks", default=10)
@click.option("--trouble", default="")
@click.option("--stage", default="toy")
@click.option("--input", "inputs", multiple=True)
@click.option("--shared", is_flag=True)
@readable_errors
def main(
    name: str, ticks: int, trouble: str, stage: str, inputs: tuple[str, ...], shared: bool
) -> None:
    root = Path.cwd()
    digests = {path: tree_digest(root / path) for path in inputs}
    modules = (f"stages.{stage}",)
    code = code_digest(modules, Path(launch.__file__).parents[1])
    recipe = Recipe(stage, name, modules, code, {"ticks": ticks, "trouble": trouble}, digests)
    arguments, to = {"ticks": ticks, "trouble": trouble}, root / "published" / name
    launch.run(recipe, 0, work, arguments, to, Shared(fill, PIECES) if shared else None)


if __name__ == "__main__":
    main()
