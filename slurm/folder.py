"""The folder of a run, in which one piece of long work is done.

runs/<stage>-<name>-<fingerprint>/ is outside the folders that DVC deletes before a stage starts, so
that a second attempt continues where the first one stopped:

    lock          held by the process that works here, or by all jobs of an array
    launch.lock   held while a launcher decides whether to submit a job
    job.json      host, job id and times: what differs between equal runs
    jobs/         submission scripts, pickled job specifications and logs
    work/         checkpoints and unfinished stores
    out/          final files, with provenance.json
    failure.txt   why the last attempt failed; removed when the next one starts
    DONE          written last; from then on, stages only publish the result
"""

import contextlib
import errno
import fcntl
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salmask.errors import InterruptedRunError, UserError
from salmask.files import file_digest, parse_json, write_bytes, write_json
from salmask.job import Job
from salmask.memory import keep_large_blocks
from salmask.provenance import FILE_NAME, Recipe, record
from slurm.job_spec import JobSpec

if TYPE_CHECKING:
    import torch

FAILURE = "failure.txt"
CONTROLLER_LOG = "controller.log"  # in jobs/: output of a local job before its own log exists
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_SILENT_SECONDS = 2.0  # a process that is about to end needs about that long


def runs_folder(root: Path) -> Path:
    """The folder of all runs: SALMASK_RUNS, else runs/ in the repository where DVC was started.

    Under `dvc exp run --temp` and in DVC's queue, DVC_ROOT is the main repository, while the
    current folder is a temporary copy that DVC deletes.
    """
    if path := os.environ.get("SALMASK_RUNS"):
        return Path(path).resolve()
    return Path(os.environ.get("DVC_ROOT") or root).resolve() / "runs"


def run_label(recipe: Recipe) -> str:
    """The name of a run's folder and of its jobs."""
    return "-".join(filter(None, [recipe.stage, recipe.name, recipe.fingerprint]))


def make_job(spec: JobSpec, device: "torch.device") -> Job:
    """The Job that the work receives as its first argument.

    Also prepares this process for it: the number of torch's threads, and memory for large tensors.
    """
    import torch

    keep_large_blocks()
    torch.set_num_threads(spec.profile.cores())
    return Job(
        fingerprint=spec.recipe.fingerprint,
        work=spec.folder / "work",
        out=spec.folder / "out",
        device=device,
        seed=spec.seed,
        workers=spec.profile.cores(),
        checkpoint_minutes=spec.profile.checkpoint_minutes,
        features=features_folder(spec.folder.parent),
    )


def features_folder(runs: Path) -> Path | None:
    """The folder of the features that evaluations share: SALMASK_FEATURES, else `features` in the
    folder of all runs. None if SALMASK_FEATURES is `off`."""
    path = os.environ.get("SALMASK_FEATURES")
    if path == "off":
        return None
    return Path(path).resolve() if path else runs / "features"


def packs_folder(runs: Path) -> Path:
    """The folder of packed images, in the folder of all runs."""
    return runs / "packs"


def make_folders(job: Job) -> None:
    """Creates the folders of a job, and removes the message of an attempt that failed before."""
    for folder in (job.work, job.out):
        folder.mkdir(exist_ok=True)
    (job.work.parent / FAILURE).unlink(missing_ok=True)


@contextlib.contextmanager
def recorded_failure(folder: Path) -> Iterator[None]:
    """Writes the message of an error to failure.txt, unless another task did so before.

    A stop signal is no failure. The report and `python -m slurm status` show the message.
    """
    try:
        yield
    except Exception as error:
        stopped = isinstance(error, InterruptedRunError) and error.number
        if not stopped and not (folder / FAILURE).exists():
            expected = type(error).__module__.startswith(("salmask.", "slurm."))
            message = str(error) if expected else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # the disk may be full, which `error` reports
                write_bytes(folder / FAILURE, f"{message}\n".encode(errors="backslashreplace"))
        raise


def failures(runs: Path) -> dict[str, str]:
    """The first line of failure.txt of each run, by `<stage>-<name>`; the newest one of a name.

    runs: the folder of all runs.
    """
    files = sorted(runs.glob(f"*/{FAILURE}"), key=lambda file: file.stat().st_mtime)
    return {
        file.parent.name.rpartition("-")[0]: file.read_text(
            encoding="utf-8", errors="replace"
        ).partition("\n")[0]
        for file in files
    }


def is_locked(folder: Path) -> bool:
    """Whether a process works in the folder of a run. False where locks cannot be read."""
    try:
        with (folder / "lock").open() as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def finish(folder: Path, job: Job, recipe: Recipe) -> None:
    """Writes provenance.json and DONE, then removes the unfinished files."""
    write_json(job.out / FILE_NAME, record(recipe, job.out, job.device))
    write_json(folder / "DONE", {FILE_NAME: file_digest(job.out / FILE_NAME)})
    shutil.rmtree(job.work, ignore_errors=True)  # a launcher that sees DONE removes it too


def is_done(folder: Path) -> bool:
    """Whether DONE exists and every file in out/ still has the digest in provenance.json."""
    try:
        done = parse_json((folder / "DONE").read_bytes())
        if done[FILE_NAME] != file_digest(folder / "out" / FILE_NAME):
            return False
        outputs = parse_json((folder / "out" / FILE_NAME).read_bytes())["outputs"]
        return all(file_digest(folder / "out" / name) == sha for name, sha in outputs.items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # or damaged
        return False


def publish_files(folder: Path, destination: Path) -> None:
    """Replaces the destination by a copy of the final files of a finished run.

    The copy is complete before anything at the destination is removed.
    """
    with contextlib.suppress(OSError):  # the folder may belong to another person
        (folder / FAILURE).unlink()
    shutil.rmtree(folder / "work", ignore_errors=True)  # left by a process that died in `finish`
    new, old = (destination.with_name(f".{destination.name}.{end}") for end in ("partial", "old"))
    for left in (new, old):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(folder / "out", new)
    with contextlib.suppress(FileNotFoundError):
        destination.rename(old)
    new.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(
    folder: Path, name: str = "lock", minutes: float = math.inf, shared: bool = False
) -> Iterator[None]:
    """Holds one of the folder's locks. Prints a message when it has to wait for long.

    Args:
        folder: the run's folder.
        name: the file name of the lock.
        minutes: raise a UserError after this time.
        shared: allow other processes to hold the lock in shared mode at the same time.
    """
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with (folder / name).open("a+") as stream:  # on NFS, a shared lock needs a readable file
        if not _acquire(stream.fileno(), mode, _SILENT_SECONDS):
            print(f"another process works in {folder}; waiting for it", flush=True)
            if not _acquire(stream.fileno(), mode, 60 * minutes):
                raise UserError(
                    f"another process still works in {folder} after {minutes:g} minutes"
                )
        yield


def _acquire(descriptor: int, mode: int, seconds: float) -> bool:
    """Tries to acquire a lock for some seconds. Returns whether it succeeded.

    Raises UserError if the file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(0.2, seconds))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"the disk of the runs' folder has no file locks (flock: {error.strerror}): set "
                "SALMASK_RUNS to a folder on another disk, or let an administrator mount this one "
                "with locks (Lustre: -o flock)"
            ) from None


def read_job_json(folder: Path) -> dict[str, Any]:
    """The content of job.json; an empty dict if the file is missing, or damaged in a part that
    stages and commands use."""
    try:
        content = parse_json((folder / "job.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if _is_valid(content) else {}


def _is_valid(content: Any) -> bool:
    """Whether the content of job.json names a job by its id, and a known executor, if any."""
    if not isinstance(content, dict):
        return False
    job, executor = content.get("job", "0"), content.get("executor", "slurm")
    return isinstance(job, str) and job.isalnum() and executor in ("slurm", "local-jobs")


def job_metadata(recipe: Recipe, **more: Any) -> dict[str, Any]:
    """The content of job.json."""
    return {"recipe": vars(recipe), "host": socket.gethostname(), "git": _git_head()} | more


def now() -> str:
    """The current time in UTC, to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_head() -> str | None:
    """The current commit; None outside a Git repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
