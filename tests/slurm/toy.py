"""A stage that takes seconds: counts, and saves where it is. Run as a command, like a stage."""

import os
import signal
import time
from pathlib import Path

import click

from salmask.distributed import rank
from salmask.errors import UserError
from salmask.job import Job
from salmask.provenance import Recipe, code_digest, tree_digest
from slurm import launch
from stages.common import readable_errors

TICK = 0.1


def work(job: Job, ticks: int, trouble: str) -> None:
    """Counts to `ticks` in job.work/count, in the first task; a second one is broken. trouble: what
    happens half-way."""
    if rank():
        raise ValueError("the second task is broken")
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
                kept = bytearray(os.urandom(1 << 20)) * 1000
                time.sleep(30)
                del kept
    (job.out / "count.txt").write_text(f"{count}\n")
    (job.out / "starts.txt").write_text((job.work / "starts").read_text())


@click.command()
@click.option("--name", required=True)
@click.option("--ticks", default=10)
@click.option("--trouble", default="")
@click.option("--stage", default="toy")
@click.option("--input", "inputs", multiple=True)
@readable_errors
def main(name: str, ticks: int, trouble: str, stage: str, inputs: tuple[str, ...]) -> None:
    root = Path.cwd()
    digests = {path: tree_digest(root / path) for path in inputs}
    code = code_digest(f"stages.{stage}", Path(launch.__file__).parents[1])
    recipe = Recipe(stage, name, code, {"ticks": ticks, "trouble": trouble}, digests)
    launch.run(recipe, 0, work, {"ticks": ticks, "trouble": trouble}, root / "published" / name)


if __name__ == "__main__":
    main()
