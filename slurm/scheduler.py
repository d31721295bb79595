"""What Slurm knows of a job, asked by its own commands.

Accounting may be off (then `sacct` answers nothing), the controller may be away for a while, and
forgets a job some minutes after its end.
"""

import os
import re
import subprocess
from dataclasses import dataclass, replace

from salmask.errors import UserError

GONE = "GONE"
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
         "PREEMPTED", "REVOKED", "TIMEOUT", GONE}  # fmt: skip
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Status:
    """state: as Slurm spells it, or GONE when it has forgotten the job. reason: why it waits or
    ended. exit: of its first failing task, as CODE:SIGNAL. log: where sbatch's output goes.
    element: which of a job array this is about, if about one."""

    state: str
    reason: str = ""
    exit: str = ""
    nodes: str = ""
    comment: str = ""
    log: str = ""
    element: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def mark(fingerprint: str) -> str:
    """The comment by which a run's jobs are known; job ids are used again some day."""
    return f"salmask-{fingerprint}"


def ask(job: str, fingerprint: str) -> Status | None:
    """A job's state; None while Slurm does not answer. Another run's job of that id is none.

    An array has failed when one of its elements has, and else ends with the last of them.
    """
    found = _elements(job, fingerprint)
    if not found:
        return None
    failed = [one for one in found if one.ended and one.state != "COMPLETED"]
    alive = sorted((one for one in found if not one.ended), key=lambda one: one.state != "RUNNING")
    if failed or not alive:
        return (failed + found)[0]
    nodes = sorted({one.nodes for one in alive if one.nodes})
    return replace(alive[0], nodes=",".join(nodes))


def _elements(job: str, fingerprint: str) -> list[Status]:
    """What Slurm knows of a job, or of an array's elements; nothing while it does not answer."""
    code, out = call("scontrol", "--oneliner", "show", "job", job)
    if code == 0:
        found = [_read(line) for line in out.strip().splitlines()]
        return [one for one in found if not one.comment or mark(fingerprint) in one.comment] or [
            Status(GONE)
        ]
    forgotten = "Invalid job id" in out
    if not forgotten:
        code, out = call("squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%N")
        rows = [line.split("|") for line in out.strip().splitlines() if line.count("|") == 2]
        if code == 0 and rows:
            return [Status(state, reason, nodes=nodes) for state, reason, nodes in rows]
        forgotten = (code == 0 and not out.strip()) or "Invalid job id" in out
    return (_from_accounting(job) or [Status(GONE)]) if forgotten else []


def _from_accounting(job: str) -> list[Status]:
    wanted = "--format=State,ExitCode,NodeList"
    code, out = call("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", wanted)
    rows = [line.split("|") for line in out.strip().splitlines() if line.count("|") == 2]
    found = [Status(state.split()[0], exit=told, nodes=nodes) for state, told, nodes in rows]
    return [one for one in found if not code and one.ended]  # and no record that nobody closed


def live(fingerprint: str) -> dict[str, Status]:
    """This user's jobs of a run that Slurm has not ended, by id; an array is one job."""
    listed = ["--noheader", f"--user={os.getuid()}", "--format=%F|%k"]
    code, out = call("squeue", *listed)
    if code:
        raise UserError(f"Slurm's squeue does not work here: {out.strip()}")
    rows = (line.partition("|") for line in out.splitlines())
    ids = dict.fromkeys(job for job, _, comment in rows if mark(fingerprint) in comment)
    found = {job: [s for s in _elements(job, fingerprint) if not s.ended] for job in ids}
    return {job: alive[0] for job, alive in found.items() if alive}


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
        _field(line, "ArrayTaskId"),
    )


def _field(line: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(.*?)(?=\s\S+?=|$)", line.strip())
    return found.group(1) if found else ""


def outside() -> dict[str, str]:
    """Our environment without the variables of a job that we may run in: sbatch obeys them."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return kept | {k: v for k, v in os.environ.items() if k == "SLURM_CONF"}


def call(*command: str) -> tuple[int, str]:
    """Exit code and output, of which there is hardly ever both kinds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer"
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")
