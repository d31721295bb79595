"""Runs a piece of long work exactly once, wherever it was interrupted, and publishes its result.

The work happens in runs/<stage>-<name>-<fingerprint>/, outside the folders that DVC deletes before
a stage starts, so that a second try goes on where the first one stopped:

    lock          held by the one process that works here
    job.json      who, where, since when: what changes between equal runs
    work/         checkpoints and half-finished stores
    out/          final files, with provenance.json
    DONE          written last; from then on the result is only published
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from salmask.devices import pick_device
from salmask.files import write_json
from salmask.job import Job
from salmask.provenance import FILE_NAME, Recipe, file_digest, record
from slurm import profile

Work = Callable[..., None]


def runs_folder(root: Path) -> Path:
    """Where runs work: SALMASK_RUNS, else runs/ in the repository that DVC was started in.

    Under `dvc exp run --temp` and in the queue, DVC_ROOT is the main repository while the current
    folder is a temporary copy that vanishes.
    """
    if named := os.environ.get("SALMASK_RUNS"):
        return Path(named).resolve()
    return Path(os.environ.get("DVC_ROOT") or root).resolve() / "runs"


def run(recipe: Recipe, seed: int, work: Work, arguments: dict[str, Any], publish: Path) -> None:
    """Does `work(job, **arguments)` unless it is done already, then copies its files to `publish`.

    recipe: what decides the result; its fingerprint names the folder, so that other parameters,
    inputs or code never meet this run's checkpoints.
    """
    chosen = profile.chosen()
    label = "-".join(filter(None, [recipe.stage, recipe.name, recipe.fingerprint]))
    folder = runs_folder(Path.cwd()) / label
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if _is_done(folder):
            print(f"{label}: finished earlier; publishing its result to {publish}", flush=True)
        else:
            job = Job(
                fingerprint=recipe.fingerprint,
                work=folder / "work",
                out=folder / "out",
                device=pick_device(),
                seed=seed,
                workers=chosen.cores(),
                checkpoint_minutes=chosen.checkpoint_minutes,
            )
            _here(folder, job, work, arguments, recipe, chosen)
        _publish(folder / "out", publish)


def _here(
    folder: Path,
    job: Job,
    work: Work,
    arguments: dict[str, Any],
    recipe: Recipe,
    chosen: profile.Profile,
) -> None:
    """The `local` executor: this process does the work."""
    torch.set_num_threads(chosen.cores())
    for place in (job.work, job.out):
        place.mkdir(exist_ok=True)
    story = {"recipe": vars(recipe), "host": socket.gethostname(), "pid": os.getpid()}
    story |= {"git": _git_head(), "started": _now()}
    write_json(folder / "job.json", story)
    work(job, **arguments)
    write_json(job.out / FILE_NAME, record(recipe, job.out, job.device))
    write_json(folder / "job.json", story | {"finished": _now()})
    write_json(folder / "DONE", {FILE_NAME: file_digest(job.out / FILE_NAME)})
    shutil.rmtree(job.work)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; a second process says what it waits for."""
    with (folder / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process works in {folder}; waiting for it", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _is_done(folder: Path) -> bool:
    """Whether DONE stands there and every file in out/ is still the one that was made."""
    try:
        done = json.loads((folder / "DONE").read_text())
        if done[FILE_NAME] != file_digest(folder / "out" / FILE_NAME):
            return False
        made = json.loads((folder / "out" / FILE_NAME).read_text())["outputs"]
        return all(file_digest(folder / "out" / name) == sha for name, sha in made.items())
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def _publish(out: Path, to: Path) -> None:
    """Copies the final files; leaves nothing else at the destination."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(out, to)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_head() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
