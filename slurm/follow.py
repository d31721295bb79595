"""Waits for a job: prints its log, and reports how it ended."""

import contextlib
import re
import sys
import time
from pathlib import Path

from salmask.files import write_bytes
from salmask.provenance import Recipe
from slurm import local_jobs, scheduler
from slurm.errors import JobFailedError, OutOfMemoryError
from slurm.folder import CONTROLLER_LOG, is_done, read_job_json, run_label
from slurm.scheduler import JobStatus

BACKENDS = {"slurm": scheduler, "local-jobs": local_jobs}  # executor -> where its jobs run

_POLL_SECONDS = 1.0  # between looks at the run's folder
_STATUS_SECONDS = 5.0  # between requests for the job's state
_END_CONFIRMATIONS = 3  # end states in a row before a report: DONE may appear late on NFS
_TAIL_LINES = 20
_OUT_OF_MEMORY_TEXTS = ("exceeded memory limit", "oom-kill", "oom_kill", "OOM Killed")
_SUBMITIT_LINE = re.compile(r"submitit (INFO|WARNING) ")
_FAILURE_PREFIXES = ("error: ", "the work failed")  # last line of a task that failed by itself


def active_jobs(folder: Path, fingerprint: str, executor: str) -> dict[str, JobStatus]:
    """A run's jobs that wait or run, even if their launcher was killed before writing job.json.

    Args:
        folder: the run's folder.
        fingerprint: of the run.
        executor: `slurm` or `local-jobs`.
    """
    recorded = str(read_job_json(folder).get("job", ""))
    jobs = BACKENDS[executor].active_jobs(fingerprint)
    return {
        job: status
        for job, status in jobs.items()
        if job == recorded or Path(status.log).is_relative_to(folder)
    }


def log_path(folder: Path, job: str, element: str = "") -> Path:
    """The log of a job's first task and of its setup lines.

    Args:
        folder: the run's folder.
        job: the job's id.
        element: an index of the job array; "" if the job is no array.
    """
    return folder / "jobs" / f"{job}{element and '_' + element}_0_log.out"


def existing_logs(folder: Path, job: str) -> dict[str, Path]:
    """The first tasks' logs that exist, by array index; the key is "" if the job is no array."""
    pattern = re.compile(rf"{job}(?:_(\d+))?_0_log.out")
    files = (folder / "jobs").glob("*_log.out")
    logs = {match.group(1) or "": f for f in files if (match := pattern.fullmatch(f.name))}
    return dict(sorted(logs.items(), key=lambda item: int(item[0] or 0)))


def wait(folder: Path, job: str, recipe: Recipe, executor: str) -> bool:
    """Waits for a job and prints its log.

    Ctrl-C does not stop the job; this process then exits with code 130.

    Args:
        folder: the run's folder.
        job: the job's id.
        recipe: the recipe of the run.
        executor: `slurm` or `local-jobs`.

    Returns:
        True when the run is done; False when the job ended without an error but the run is not
        done.

    Raises:
        JobFailedError: the job failed. The other elements of its array are cancelled.
        OutOfMemoryError: the job failed because it used too much memory.
    """
    label = run_label(recipe)
    try:
        return _wait(folder, job, recipe, executor)
    except KeyboardInterrupt:
        print(
            f"\njob {job} keeps running: `dvc repro` attaches to it again, and "
            f"`python -m slurm cancel {label}` stops it",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(130)


def _wait(folder: Path, job: str, recipe: Recipe, executor: str) -> bool:
    backend = BACKENDS[executor]
    last_line, last_status, ends, last_request = "", JobStatus(""), 0, 0.0
    while True:
        done = is_done(folder)  # before the log is read, so that the log is complete when done
        print_new_lines(folder, job)
        if done:
            return True
        if time.monotonic() - last_request >= _STATUS_SECONDS:
            last_request = time.monotonic()
            status = backend.job_status(job, recipe.fingerprint)
            if status and status.state != scheduler.NOT_FOUND:
                last_status = status
            ends = ends + 1 if status and status.ended else 0
            if ends == _END_CONFIRMATIONS and status:
                if status.state == "COMPLETED":
                    return False
                if job in backend.active_jobs(recipe.fingerprint):
                    backend.cancel(job)
                message = failure_report(folder, job, run_label(recipe), status, last_status)
                raise _error_class(folder, job, status)(message)
            line = _status_line(job, status)
            if line != last_line and not (status and status.ended):
                print(line, flush=True)
                last_line = line
        time.sleep(_POLL_SECONDS)


def _status_line(job: str, status: JobStatus | None) -> str:
    if status is None:
        return f"job {job}: Slurm does not answer; waiting until it does"
    nodes = f" on {status.nodes}" if status.nodes else ""
    return f"job {job} is {status.state.lower()}{nodes}{status.because}"


def print_new_lines(folder: Path, job: str) -> None:
    """Prints the complete lines of the logs that no launcher has printed before."""
    for element, log in existing_logs(folder, job).items():
        position_file = log.with_suffix(".shown")
        try:
            start = int(position_file.read_text(encoding="utf-8")) if position_file.is_file() else 0
            with log.open("rb") as stream:
                stream.seek(start)
                new = stream.read()
        except (FileNotFoundError, ValueError):
            continue
        new = new[: new.rfind(b"\n") + 1]
        if not new:
            continue
        for line in new.decode(errors="replace").splitlines():
            if not _SUBMITIT_LINE.match(line):
                print(f"{element}: {line}" if element else line, flush=True)
        with contextlib.suppress(FileNotFoundError):  # another launcher wrote it at the same time
            write_bytes(position_file, str(start + len(new)).encode())


def _error_class(folder: Path, job: str, status: JobStatus) -> type[JobFailedError]:
    """Slurm has a state for "out of memory" only with cgroups; otherwise the log says so."""
    lines = [line for log in existing_logs(folder, job).values() for line in _tail(log)]
    in_log = any(text in line for line in lines for text in _OUT_OF_MEMORY_TEXTS)
    return OutOfMemoryError if status.state == "OUT_OF_MEMORY" or in_log else JobFailedError


def failure_report(
    folder: Path, job: str, label: str, status: JobStatus, last_status: JobStatus
) -> str:
    """The message about a job that ended without a result.

    Args:
        folder: the run's folder.
        job: the job's id.
        label: the name of the run.
        status: the job's final state.
        last_status: the last state that is not NOT_FOUND.
    """
    element = status.element if status.element.isdigit() else ""
    log = log_path(folder, job, element)
    details = status if status.exit else last_status
    if status.state == scheduler.NOT_FOUND:
        facts = [f"disappeared (last state: {last_status.state or 'unknown'})"]
    else:
        facts = [f"ended as {status.state}"]
    if details.exit:
        code, _, number = details.exit.partition(":")
        facts.append(f"signal {number}" if number not in ("", "0") else f"exit code {code}")
    if details.nodes:
        facts.append(f"on {details.nodes}")
    if details.reason not in ("", "None"):
        facts.append(details.reason)
    if log.is_file():
        lines = ["the end of its log:", *_tail(log), f"the whole log: {log}"]
    elif early_output := _tail(folder / "jobs" / CONTROLLER_LOG):
        lines = ["it wrote no log; its first output was:", *early_output]
    else:
        lines = [f"it wrote no log: can its node read and write {log.parent}?"]
    if other := _failed_task_log(log):
        lines += ["the end of another task's log:", *_tail(other), f"the whole log: {other}"]
    name = log.name.removesuffix("_0_log.out")
    return "\n".join(
        [f"job {name} ({label}) {', '.join(facts)}", *lines,
         "`dvc repro` submits it again and continues from the last checkpoint"]
    )  # fmt: skip


def _tail(log: Path) -> list[str]:
    """The last lines of a log, indented, without submitit's own."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return [f"    {line}" for line in lines if not _SUBMITIT_LINE.match(line)][-_TAIL_LINES:]


def _failed_task_log(first: Path) -> Path | None:
    """The log of another task than the first one, if its last line says why the task failed."""
    job = first.name.removesuffix("_0_log.out")
    for log in sorted(first.parent.glob(f"{job}_*_log.out")):
        last = (_tail(log) or [""])[-1].strip()
        if log != first and last.startswith(_FAILURE_PREFIXES):
            return log
    return None
