"""The folder in which one piece of long work happens, whoever does it.

runs/<stage>-<name>-<fingerprint>/ lies outside the folders that DVC deletes before a stage starts,
so that a second try goes on where the first one stopped:

    lock          held by the one process that works here, or by all that share the work
    launch.lock   held while deciding whether a job must be submitted
    job.json      who, where, since when: what changes between equal runs
    jobs/         what Slurm's jobs were given, and their logs
    work/         checkpoints and half-finished stores
    out/          final files, with provenance.json
    DONE          written last; from then on the result is only published
"""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from salmask.errors import UserError
from salmask.files import write_json
from salmask.job import Job
from salmask.provenance import FILE_NAME, Recipe, file_digest, record
from slurm.profile import Profile

FIRST_WORDS = "controller.log"  # in jobs/: what a job of this machine says before it has a log
_SILENT_SECONDS = 2.0  # one that ends takes about that long

Work = Callable[..., None]


@dataclass(frozen=True)
class Shared:
    """How several jobs share a piece of work before its `Work` completes it.

    fill(job, number, count, **arguments): does one share of `count`; whether all is there then.
    pieces: into how many shares the work can be split at most.
    """

    fill: Callable[..., bool]
    pieces: int


def runs_folder(root: Path) -> Path:
    """Where runs work: SALMASK_RUNS, else runs/ in the repository that DVC was started in.

    Under `dvc exp run --temp` and in the queue, DVC_ROOT is the main repository while the current
    folder is a temporary copy that vanishes.
    """
    if named := os.environ.get("SALMASK_RUNS"):
        return Path(named).resolve()
    return Path(os.environ.get("DVC_ROOT") or root).resolve() / "runs"


def label_of(recipe: Recipe) -> str:
    """The name of a run's folder, and of its jobs."""
    return "-".join(filter(None, [recipe.stage, recipe.name, recipe.fingerprint]))


def job_in(folder: Path, recipe: Recipe, seed: int, device: torch.device, chosen: Profile) -> Job:
    """What the work is told of where it runs."""
    return Job(
        fingerprint=recipe.fingerprint,
        work=folder / "work",
        out=folder / "out",
        device=device,
        seed=seed,
        workers=chosen.cores(),
        checkpoint_minutes=chosen.checkpoint_minutes,
    )


def make_places(job: Job) -> None:
    for place in (job.work, job.out):
        place.mkdir(exist_ok=True)


def finish(folder: Path, job: Job, recipe: Recipe) -> None:
    """Writes provenance and DONE over the final files, and removes the unfinished ones."""
    write_json(job.out / FILE_NAME, record(recipe, job.out, job.device))
    write_json(folder / "DONE", {FILE_NAME: file_digest(job.out / FILE_NAME)})
    shutil.rmtree(job.work)


def is_done(folder: Path) -> bool:
    """Whether DONE stands there and every file in out/ is still the one that was made."""
    try:
        done = json.loads((folder / "DONE").read_text())
        if done[FILE_NAME] != file_digest(folder / "out" / FILE_NAME):
            return False
        made = json.loads((folder / "out" / FILE_NAME).read_text())["outputs"]
        return all(file_digest(folder / "out" / name) == sha for name, sha in made.items())
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def publish_files(folder: Path, to: Path) -> None:
    """Copies the final files of a finished run; leaves nothing else at the destination."""
    shutil.rmtree(folder / "work", ignore_errors=True)  # of a process that died when it was done
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder / "out", to)


@contextmanager
def locked(
    folder: Path, name: str = "lock", minutes: float | None = None, shared: bool = False
) -> Iterator[None]:
    """Holds one of the folder's locks; a process that waits for long says for what.

    minutes: after which it gives up with a UserError, if ever. shared: together with all that
    share it too.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with (folder / name).open("a+") as stream:  # NFS shares no lock of what cannot be read
        if not _taken(stream.fileno(), kind, _SILENT_SECONDS):
            print(f"another process works in {folder}; waiting for it", flush=True)
            if minutes is None:
                fcntl.flock(stream, kind)
            elif not _taken(stream.fileno(), kind, 60 * minutes):
                raise UserError(
                    f"another process still works in {folder} after {minutes:g} minutes"
                )
        yield


def _taken(descriptor: int, kind: int, seconds: float) -> bool:
    """Whether the lock could be had in that time."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(min(0.2, seconds))


def read_job_json(folder: Path) -> dict[str, Any]:
    """What job.json says; nothing if there is none."""
    try:
        told: dict[str, Any] = json.loads((folder / "job.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return told


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_head() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
