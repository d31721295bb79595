"""Waits for a job: shows its log, and notices its end, whatever that is."""

import contextlib
import re
import sys
import time
from pathlib import Path

from salmask.files import write_bytes
from salmask.provenance import Recipe
from slurm import machine, scheduler
from slurm.errors import JobFailedError, OutOfMemoryError
from slurm.folder import FIRST_WORDS, is_done, label_of
from slurm.scheduler import Status

SETTLING_SECONDS = 90  # how long a job may be about to end
_LOOK_SECONDS = 1.0  # between looks at the folder
_ASK_SECONDS = 5.0  # between questions to Slurm
_DEAD_ANSWERS = 3  # so many in a row make a failure: a last file may be on its way
_TAIL = 20
_NO_MEMORY = ("exceeded memory limit", "oom-kill", "oom_kill", "OOM Killed")  # Slurm's, in a log
_NOISE = re.compile(r"submitit (INFO|WARNING) ")

LAST_WORDS = ("error: ", "the work failed")  # of a task that found its end itself

JOBS = {"slurm": scheduler, "local-jobs": machine}  # who knows the jobs of an executor

nap = time.sleep


def log_of(folder: Path, job: str, element: str = "") -> Path:
    """The log of a job's first task, and of the shell lines around it; or of an array's element."""
    return folder / "jobs" / f"{job}{element and '_' + element}_0_log.out"


def logs_of(folder: Path, job: str) -> dict[str, Path]:
    """The logs that there are: of the job under "", or of an array's elements under "0", "1"..."""
    named = {p: re.fullmatch(rf"{job}(?:_(\d+))?_0_log.out", p.name) for p in _files(folder)}
    found = {match.group(1) or "": log for log, match in named.items() if match}
    return dict(sorted(found.items(), key=lambda item: int(item[0] or 0)))


def _files(folder: Path) -> list[Path]:
    return list((folder / "jobs").glob("*_log.out"))


def wait(folder: Path, job: str, recipe: Recipe, executor: str) -> bool:
    """Returns True when the run is done; False when its job ended well without that. Raises
    JobFailedError when it ended otherwise (OutOfMemoryError, if so), and stops the other elements
    of its array then.

    Ctrl-C leaves the job alone, and this process with exit code 130.
    """
    label = label_of(recipe)
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
    jobs = JOBS[executor]
    said, seen, dead, asked = "", Status(""), 0, 0.0
    while True:
        done = is_done(folder)  # first, so that all of the log is there when it is
        show_new(folder, job)
        if done:
            return True
        if time.monotonic() - asked >= _ASK_SECONDS:
            asked = time.monotonic()
            status = jobs.ask(job, recipe.fingerprint)
            seen = status if status and status.state != scheduler.GONE else seen
            dead = dead + 1 if status and status.ended else 0
            if dead == _DEAD_ANSWERS and status:
                if status.state == "COMPLETED":
                    return False
                if job in jobs.live(recipe.fingerprint):
                    jobs.cancel(job)
                told = report(folder, job, label_of(recipe), status, seen)
                raise _kind_of_end(folder, job, status)(told)
            say = _news(job, status)
            if say != said and not (status and status.ended):
                print(say, flush=True)
                said = say
        nap(_LOOK_SECONDS)


def _news(job: str, status: Status | None) -> str:
    if status is None:
        return f"job {job}: Slurm does not answer; waiting until it does"
    why = f" ({status.reason})" if status.reason not in ("", "None") else ""
    where = f" on {status.nodes}" if status.nodes else ""
    return f"job {job} is {status.state.lower()}{where}{why}"


def show_new(folder: Path, job: str) -> None:
    """Prints what the logs have gained since somebody was last shown them; whole lines only."""
    for element, log in logs_of(folder, job).items():
        _show_new(log, f"{element}: " if element else "")


def _show_new(log: Path, before: str) -> None:
    shown = log.with_suffix(".shown")
    try:
        start = int(shown.read_text()) if shown.is_file() else 0
        with log.open("rb") as stream:
            stream.seek(start)
            new = stream.read()
    except (FileNotFoundError, ValueError):
        return
    new = new[: new.rfind(b"\n") + 1]
    if new:
        for line in new.decode(errors="replace").splitlines():
            if not _NOISE.match(line):
                print(before + line, flush=True)
        with contextlib.suppress(FileNotFoundError):  # another who waits here was faster
            write_bytes(shown, str(start + len(new)).encode())


def _kind_of_end(folder: Path, job: str, status: Status) -> type[JobFailedError]:
    """Only where cgroups watch over memory does Slurm have a state for it."""
    ends = [line for log in logs_of(folder, job).values() for line in _tail(log)]
    if status.state == "OUT_OF_MEMORY" or any(word in line for line in ends for word in _NO_MEMORY):
        return OutOfMemoryError
    return JobFailedError


def report(folder: Path, job: str, label: str, status: Status, seen: Status) -> str:
    """What became of a job that left no result. seen: the last that Slurm knew of it."""
    element = status.element if status.element.isdigit() else ""
    log = log_of(folder, job, element)
    told = status if status.exit else seen
    state = (
        f"was {seen.state or 'never seen'} and is gone"
        if status.state == scheduler.GONE
        else (f"ended as {status.state}")
    )
    facts = [state]
    if told.exit:
        code, _, number = told.exit.partition(":")
        facts.append(f"signal {number}" if number not in ("", "0") else f"exit code {code}")
    if told.nodes:
        facts.append(f"on {told.nodes}")
    if told.reason not in ("", "None"):
        facts.append(told.reason)
    if log.is_file():
        tail = ["the end of its log:", *_tail(log), f"all of it: {log}"]
    elif said := _tail(folder / "jobs" / FIRST_WORDS):
        tail = ["it left no log, but said at its start:", *said]
    else:
        tail = [f"it left no log: is {log.parent} visible from its node?"]
    if other := _other_failure(log):
        tail += ["and of another task's:", *_tail(other), f"all of it: {other}"]
    return "\n".join(
        [f"job {log.name.removesuffix('_0_log.out')} ({label}) {', '.join(facts)}", *tail,
         "`dvc repro` submits it again, and goes on from its last checkpoint"]
    )  # fmt: skip


def _tail(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return [f"    {line}" for line in [x for x in lines if not _NOISE.match(x)][-_TAIL:]]


def _other_failure(first: Path) -> Path | None:
    """The log of a task but the first that says why it failed, if there is one."""
    job = first.name.removesuffix("_0_log.out")
    for log in sorted(first.parent.glob(f"{job}_*_log.out")):
        last = (_tail(log) or [""])[-1].strip()
        if log != first and last.startswith(LAST_WORDS):
            return log
    return None
