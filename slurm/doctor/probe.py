"""Runs a job of at most a minute that checks what real jobs need on a node.

These are the runs' folder, the project, Python with its packages, and the profile's setup lines.
The job and its files are removed at the end.
"""

import secrets
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from salmask.findings import Finding
from slurm import scheduler
from slurm.doctor.dry_run import sbatch_error, submission_script
from slurm.folder import runs_folder
from slurm.profile import Profile
from slurm.scheduler import JobStatus
from slurm.submission import setup_lines

_START_SECONDS = 20.0  # the maximum time to wait for the job's start
_RUN_SECONDS = 150.0  # the maximum time to wait for its end: its limit, and Slurm's delays
_POLL_SECONDS = 1.0
_EXIT_BASE = 64  # a job with problems exits with this number plus the bits of the problems
_NO_RUNS, _NO_PROJECT, _NO_PYTHON, _NO_IMPORT = 1, 2, 4, 8


def run_probe(profile: Profile) -> list[Finding]:
    """Runs the job and returns what it found.

    Takes some seconds, or minutes on a slow node. The job is cancelled when this process receives
    Ctrl-C or SIGTERM.
    """
    runs = runs_folder(Path.cwd())
    with _stop_signals_as_exit():
        try:
            runs.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=runs, prefix=".doctor-")
        except OSError as error:
            return [Finding("stop", f"nothing can be written to the runs' folder: {error}")]
        with temporary as folder:
            return _submit_and_wait(profile, runs, Path(folder))


def _submit_and_wait(profile: Profile, runs: Path, folder: Path) -> list[Finding]:
    token = secrets.token_hex()
    (folder / "token").write_text(token)
    code, output = scheduler.run_command(
        "sbatch",
        "--parsable",
        "--output=/dev/null",  # the script opens its log itself, to notice a missing folder
        f"--deadline=now+{60 + 2 * round(_START_SECONDS)}",  # in case this process is killed
        script=_script(profile, folder, token),
    )
    if code:
        reason = sbatch_error(output)
        return [Finding("note", f"no node was checked: sbatch refuses a small job: {reason}")]
    job = output.split()[-1].partition(";")[0]  # the last word is ID or ID;CLUSTER
    status = None
    try:
        _, description = scheduler.run_command("scontrol", "--oneliner", "show", "job", job)
        status = _wait(job)
    finally:
        if status is None or not status.ended:
            scheduler.run_command("scancel", job)
    log = folder / "log"
    printed = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else None
    findings = interpret(status, printed, runs)
    if " Requeue=0" in description:
        text = "this cluster never requeues jobs: after a time limit, run `dvc repro` again"
        findings.append(Finding("note", text))
    return findings


def _script(profile: Profile, folder: Path, token: str) -> str:
    """The job's script. Its exit code encodes the problems, even where no file comes back."""
    small = replace(
        profile,
        nodes=1,
        tasks_per_node=1,
        gpus=0,
        cpus=1,
        mem_gb=profile.mem_gb and min(profile.mem_gb, 2),
        time_min=1,
        signal_seconds=10,
    )
    log, token_file = shlex.quote(f"{folder}/log"), shlex.quote(f"{folder}/token")
    project, python = shlex.quote(str(Path.cwd())), shlex.quote(sys.executable)
    check_runs = [
        "problems=0",
        f"for _ in 1 2 3 4 5; do [[ -f {token_file} ]] && break; sleep 1; done",  # NFS may lag
        f"if [[ $(cat {token_file} 2>/dev/null) == {token} ]] && : 2>/dev/null >{log}",
        f"then exec >{log} 2>&1; else problems={_NO_RUNS}; fi",
    ]
    check_rest = [
        f"[[ -e {project}/dvc.yaml ]] || problems=$((problems | {_NO_PROJECT}))",
        f"if ! [[ -x {python} ]]; then problems=$((problems | {_NO_PYTHON}))",
        f"else srun {python} -c 'import slurm.worker, torch' ||"
        f" problems=$((problems | {_NO_IMPORT})); fi",
        f"exit $((problems ? {_EXIT_BASE} + problems : 0))",
    ]
    lines = [*check_runs, *setup_lines(profile, Path.cwd())]
    return submission_script(small, False, lines, "\n".join(check_rest), srun=False)


def _wait(job: str) -> JobStatus | None:
    """Waits until the job ends, or for the maximum time. Returns its last known state."""
    deadline, started, status = time.monotonic() + _START_SECONDS, False, None
    while time.monotonic() < deadline:
        status = scheduler.job_status(job, "doctor") or status
        if status and status.ended:
            break
        if status and not started and status.state not in ("PENDING", "CONFIGURING"):
            started, deadline = True, time.monotonic() + _RUN_SECONDS
        time.sleep(_POLL_SECONDS)
    return status


def interpret(status: JobStatus | None, printed: str | None, runs: Path) -> list[Finding]:
    """The findings that follow from the end of the job.

    Args:
        status: the job's last known state.
        printed: the content of its log; None if it wrote none.
        runs: the runs' folder.
    """
    if status is None:
        return [Finding("note", "no node was checked: Slurm does not give the state of the job")]
    if status.state in ("PENDING", "CONFIGURING", "DEADLINE"):
        text = (
            f"the cluster is busy: a job of one task and one minute did not start within "
            f"{_START_SECONDS:.0f} s{status.because}, so the runs' folder, the project and Python "
            "were not checked on a node"
        )
        return [Finding("note", text)]
    node = f"node {status.nodes or '?'}"
    lines = [line for line in (printed or "").splitlines() if line.strip()]
    last_line = f": {lines[-1].strip()}" if lines else ""
    code, _, number = status.exit.partition(":")
    if status.state == "COMPLETED":
        text = f"{node} has the runs' folder, the project and Python; setup works there"
        return [Finding("ok", text)]
    if code.isdecimal() and int(code) > _EXIT_BASE and number in ("", "0"):
        return _problems(int(code) - _EXIT_BASE, node, last_line, runs)
    if status.state == "TIMEOUT" or not status.ended:
        text = f"{node} needs more than a minute for `setup` and the import of torch{last_line}"
        return [Finding("note", text)]
    if last_line:
        return [Finding("stop", f"{node}{last_line}")]
    text = (
        f"on {node}, a job of one task ended as {status.state} (exit code {status.exit}) and "
        f"wrote nothing to {runs}: make sure that the node can read and write this folder"
    )
    return [Finding("stop", text)]


def _problems(bits: int, node: str, last_line: str, runs: Path) -> list[Finding]:
    texts = {
        _NO_RUNS: f"{node} cannot read or write the runs' folder {runs}: set SALMASK_RUNS to a "
        "folder that all nodes share",
        _NO_PROJECT: f"{node} cannot read the project {Path.cwd()}: move the project to a folder "
        "that all nodes share",
        _NO_PYTHON: f"{node} has no {sys.executable}: create the environment in a folder that all "
        "nodes share",
        _NO_IMPORT: f"{node}: {sys.executable} cannot import salmask and torch{last_line}",
    }
    return [Finding("stop", text) for bit, text in texts.items() if bits & bit]


@contextmanager
def _stop_signals_as_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that all `finally` blocks run, as for Ctrl-C."""

    def exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {n: signal.signal(n, exit_on_signal) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
