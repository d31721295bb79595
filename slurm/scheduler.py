"""What Slurm knows of a job, asked by its own commands.

Accounting may be off (then `sacct` answers nothing), the controller may be away for a while, and
forgets a job some minutes after its end.
"""

import os
import re
import subprocess
from dataclasses import dataclass

from salmask.errors import UserError

GONE = "GONE"
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
         "PREEMPTED", "REVOKED", "TIMEOUT", GONE}  # fmt: skip
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Status:
    """state: as Slurm spells it, or GONE when it has forgotten the job. reason: why it waits or
    ended. exit: of its first failing task, as CODE:SIGNAL. log: where sbatch's output goes."""

    state: str
    reason: str = ""
    exit: str = ""
    nodes: str = ""
    comment: str = ""
    log: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def mark(fingerprint: str) -> str:
    """The comment by which a run's jobs are known; job ids are used again some day."""
    return f"salmask-{fingerprint}"


def ask(job: str, fingerprint: str) -> Status | None:
    """A job's state; None while Slurm does not answer. Another run's job of that id is none."""
    code, out = call("scontrol", "--oneliner", "show", "job", job)
    if code == 0:
        found = _read(out)
        ours = not found.comment or mark(fingerprint) in found.comment
        return found if ours else Status(GONE)
    forgotten = "Invalid job id" in out
    if not forgotten:
        code, out = call("squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%N")
        if code == 0 and out.count("|") == 2:
            state, reason, nodes = out.strip().split("|")
            return Status(state, reason, nodes=nodes)
        forgotten = (code == 0 and not out.strip()) or "Invalid job id" in out
    return (_from_accounting(job) or Status(GONE)) if forgotten else None


def _from_accounting(job: str) -> Status | None:
    wanted = "--format=State,ExitCode,NodeList"
    code, out = call("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", wanted)
    lines = out.strip().splitlines()
    if code or not lines or lines[-1].count("|") != 2:
        return None
    state, exit_code, nodes = lines[-1].split("|")
    found = Status(state.split()[0], exit=exit_code, nodes=nodes)
    return found if found.ended else None  # a record that nobody closed


def live(fingerprint: str) -> dict[str, Status]:
    """This user's jobs of a run that Slurm has not ended, by id."""
    listed = ["--noheader", f"--user={os.getuid()}", "--format=%i|%k"]
    code, out = call("squeue", *listed)
    if code:
        raise UserError(f"Slurm's squeue does not work here: {out.strip()}")
    rows = (line.partition("|") for line in out.splitlines())
    ids = [job for job, _, comment in rows if mark(fingerprint) in comment]
    found = {job: ask(job, fingerprint) for job in ids}
    return {job: status for job, status in found.items() if status and not status.ended}


def requeue(job: str) -> bool:
    """Puts a running job back into the queue; whether Slurm agreed."""
    code, out = call("scontrol", "requeue", job)
    if code:
        print(f"scontrol requeue {job}: {out.strip()}", flush=True)
    return code == 0


def cancel(job: str) -> None:
    """Raises UserError when Slurm refuses."""
    code, out = call("scancel", job)
    if code:
        raise UserError(f"scancel {job}: {out.strip()}")


def address(nodes: str) -> str:
    """Where the first of a list of nodes ("n[1-4]") is reached: NodeAddr, or its name."""
    _, out = call("scontrol", "show", "hostnames", nodes)
    first = out.split()[0]
    _, out = call("scontrol", "--oneliner", "show", "node", first)
    return _field(out, "NodeAddr") or first


def first_host(nodes: str) -> str:
    """The name of the first of a list of nodes."""
    return call("scontrol", "show", "hostnames", nodes)[1].split()[0]


def _read(line: str) -> Status:
    return Status(
        _field(line, "JobState"),
        _field(line, "Reason"),
        _field(line, "ExitCode"),
        _field(line, "NodeList").replace("(null)", ""),
        _field(line, "Comment"),
        _field(line, "StdOut"),
    )


def _field(line: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(.*?)(?=\s\S+?=|$)", line.strip())
    return found.group(1) if found else ""


def call(*command: str) -> tuple[int, str]:
    """Exit code and output of a command of Slurm: hardly ever both kinds of output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer"
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")
