"""A job of a minute that looks, from a node, at what a real job needs there: the runs' folder, the
project, Python, and the profile's setup. It leaves neither job nor file behind."""

import re
import secrets
import shlex
import signal
import subprocess
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
from slurm import scheduler, worker
from slurm.folder import runs_folder
from slurm.profile import Profile
from slurm.scheduler import Status

_START_SECONDS = 20.0  # a job that has not started by then is not waited for
_RUN_SECONDS = 150.0  # its limit of a minute, and Slurm's leisure
_ASK_SECONDS = 1.0
_PREFIXES = re.compile("^((sbatch|error|allocation failure|Batch job submission failed): )*")
_LOOKED = 64  # the exit code of a job that came through: this, and what it found amiss
_NO_RUNS, _NO_PROJECT, _NO_PYTHON, _NO_IMPORT = 1, 2, 4, 8


def script(chosen: Profile, stage: str, setup: list[str], command: str, srun: bool = True) -> str:
    """What sbatch is given for a stage's job, as submitit writes it from submission.py."""
    import submitit

    executor = submitit.SlurmExecutor(folder=runs_folder(Path.cwd()) / "doctor")
    executor.update_parameters(
        **chosen.sbatch(stage),
        job_name="salmask-doctor",
        comment=scheduler.mark("doctor"),
        wckey="",
        stderr_to_stdout=True,
        setup=setup,
        use_srun=srun,
    )
    return str(executor._make_submission_file_text(command, uid="doctor"))


def sbatch(text: str, *options: str) -> tuple[int, str]:
    """Exit code of sbatch and all it says."""
    try:
        done = subprocess.run(
            ["sbatch", *options],
            input=text,
            env=scheduler.outside(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return 124, "sbatch did not answer"
    return done.returncode, done.stdout


def refusal(said: str) -> str:
    """What sbatch complains of, in one line and without its prefixes."""
    lines = [_PREFIXES.sub("", line.strip()) for line in said.splitlines()]
    return "; ".join(filter(None, dict.fromkeys(lines))) or "it does not say why"


def look(chosen: Profile) -> list[Finding]:
    """Runs the job and tells what it saw. Ends within seconds, or minutes on a slow node; Ctrl-C
    and a request to end cancel it."""
    runs = runs_folder(Path.cwd())
    with _tidy_ending():
        try:
            runs.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(dir=runs, prefix=".doctor-")
        except OSError as error:
            return [Finding("stop", f"nothing can be written to the runs' folder: {error}")]
        with place as folder:
            return _look(chosen, runs, Path(folder))


def _look(chosen: Profile, runs: Path, folder: Path) -> list[Finding]:
    token = secrets.token_hex()
    (folder / "token").write_text(token)
    code, said = sbatch(
        _script(chosen, folder, token),
        "--parsable",
        "--output=/dev/null",  # the script opens its log itself: Slurm would only say "failed"
        f"--deadline=now+{60 + 2 * round(_START_SECONDS)}",  # should this process be killed
    )
    if code:
        return [
            Finding("note", f"no node was looked at: sbatch refuses a small job: {refusal(said)}")
        ]
    job = said.split()[-1].partition(";")[0]  # ID or ID;CLUSTER, after what sbatch may warn of
    status = None
    try:
        _, told = scheduler.call("scontrol", "--oneliner", "show", "job", job)
        status = _wait(job)
    finally:
        if status is None or not status.ended:
            scheduler.call("scancel", job)
    log = folder / "log"
    printed = log.read_text(errors="replace") if log.is_file() else None
    found = findings(status, printed, runs)
    if " Requeue=0" in told:
        found.append(
            Finding(
                "note",
                "Slurm lets no job queue up again here: after a time limit, call `dvc repro` again",
            )
        )
    return found


def _script(chosen: Profile, folder: Path, token: str) -> str:
    """The job's lines of bash. Its exit code comes back even where no file does."""
    small = replace(
        chosen,
        nodes=1,
        tasks_per_node=1,
        gpus=0,
        cpus=1,
        mem_gb=chosen.mem_gb and min(chosen.mem_gb, 2),
        time_min=1,
        signal_seconds=10,
    )
    log, seen = shlex.quote(f"{folder}/log"), shlex.quote(f"{folder}/token")
    project, python = shlex.quote(str(Path.cwd())), shlex.quote(sys.executable)
    before = [
        "amiss=0",
        f"for _ in 1 2 3 4 5; do [[ -f {seen} ]] && break; sleep 1; done",  # NFS may lag
        f"if [[ $(cat {seen} 2>/dev/null) == {token} ]] && : 2>/dev/null >{log}",
        f"then exec >{log} 2>&1; else amiss={_NO_RUNS}; fi",
    ]
    after = [
        f"[[ -e {project}/dvc.yaml ]] || amiss=$((amiss | {_NO_PROJECT}))",
        f"if ! [[ -x {python} ]]; then amiss=$((amiss | {_NO_PYTHON}))",
        f"else srun {python} -c 'import slurm.worker' || amiss=$((amiss | {_NO_IMPORT})); fi",
        f"exit $((amiss ? {_LOOKED} + amiss : 0))",
    ]
    lines = [*before, *worker.setup(chosen)]
    return script(small, "doctor", lines, "\n".join(after), srun=False)


def _wait(job: str) -> Status | None:
    """The job's last state: ended, or the one in which waiting for it became too long."""
    until, started, status = time.monotonic() + _START_SECONDS, False, None
    while time.monotonic() < until:
        status = scheduler.ask(job, "doctor") or status
        if status and status.ended:
            break
        if status and not started and status.state not in ("PENDING", "CONFIGURING"):
            started, until = True, time.monotonic() + _RUN_SECONDS
        time.sleep(_ASK_SECONDS)
    return status


def findings(status: Status | None, printed: str | None, runs: Path) -> list[Finding]:
    """What the job's end means. printed: its log, if that came to be."""
    if status is None:
        return [Finding("note", "no node was looked at: Slurm did not say what became of the job")]
    if status.state in ("PENDING", "CONFIGURING", "DEADLINE"):
        why = f" ({status.reason})" if status.reason not in ("", "None") else ""
        return [
            Finding(
                "note",
                f"the cluster is busy: a job of one task and one minute did not start within "
                f"{_START_SECONDS:.0f} s{why}, so whether a node sees the runs' folder, the "
                "project and Python is not known",
            )
        ]
    where = f"node {status.nodes or '?'}"
    lines = [line for line in (printed or "").splitlines() if line.strip()]
    last = f": {lines[-1].strip()}" if lines else ""
    code, _, number = status.exit.partition(":")
    if status.state == "COMPLETED":
        text = f"{where} sees the runs' folder, the project and Python; setup works there"
        return [Finding("ok", text)]
    if code.isdecimal() and int(code) > _LOOKED and number in ("", "0"):
        return _amiss(int(code) - _LOOKED, where, last, runs)
    if status.state == "TIMEOUT" or not status.ended:
        slow = f"{where} was not through `setup` and the import of torch after a minute{last}"
        return [Finding("note", slow)]
    if last:
        return [Finding("stop", f"{where}{last}")]
    return [
        Finding(
            "stop",
            f"on {where}, a job of one task ended as {status.state} (exit code {status.exit}) and "
            f"printed nothing to {runs}: does the node see that folder?",
        )
    ]


def _amiss(bits: int, where: str, last: str, runs: Path) -> list[Finding]:
    shared = "in a folder that all nodes share"
    texts = {
        _NO_RUNS: f"{where} does not see the runs' folder {runs}, or may not write there: let "
        "SALMASK_RUNS name a folder that all nodes share",
        _NO_PROJECT: f"{where} does not see the project {Path.cwd()}: clone it {shared}",
        _NO_PYTHON: f"{where} has no {sys.executable}: make the environment {shared}",
        _NO_IMPORT: f"{where}: {sys.executable} does not import salmask and torch{last}",
    }
    return [Finding("stop", text) for bit, text in texts.items() if bits & bit]


@contextmanager
def _tidy_ending() -> Iterator[None]:
    """A request to end, or a closed terminal, leaves through every `finally`, as Ctrl-C does."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
