"""The state of Slurm's jobs, read through Slurm's commands.

Accounting may be off (then `sacct` prints nothing). The controller may be unavailable for a while,
and it forgets a job some minutes after the job's end.
"""

import os
import re
import subprocess
from dataclasses import dataclass, replace

from salmask.errors import UserError

NOT_FOUND = "NOT_FOUND"
END_STATES = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
              "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT", NOT_FOUND}  # fmt: skip
_CHANGING_VARIABLES = ("SLURM_", "SBATCH_EXPORT", "SQUEUE_", "SCONTROL_", "SACCT_")
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, or of one element of a job array.

    Args:
        state: Slurm's name of the state, or NOT_FOUND when Slurm has no record of the job.
        reason: why the job waits or why it ended.
        exit: exit code and signal of the first task that failed, as CODE:SIGNAL.
        nodes: the nodes of the job, as Slurm lists them.
        comment: the comment of the job (see `job_comment`).
        log: the file to which sbatch writes the output.
        element: index in the job array; "" if the job is not part of an array.
    """

    state: str
    reason: str = ""
    exit: str = ""
    nodes: str = ""
    comment: str = ""
    log: str = ""
    element: str = ""

    @property
    def ended(self) -> bool:
        return self.state in END_STATES

    @property
    def because(self) -> str:
        """The reason in brackets after a blank, for messages; "" without a reason."""
        return f" ({self.reason})" if self.reason not in ("", "None") else ""


def job_comment(fingerprint: str) -> str:
    """The comment that identifies the jobs of a run. Job ids do not: Slurm reuses them."""
    return f"salmask-{fingerprint}"


def job_status(job: str, fingerprint: str) -> JobStatus | None:
    """The state of a run's job; None while Slurm does not answer.

    The state is NOT_FOUND if the job of this id belongs to another run. An array counts as failed
    when one of its elements failed; otherwise it ends when its last element ends.
    """
    elements = _element_statuses(job, fingerprint)
    if not elements:
        return None
    failed = [one for one in elements if one.ended and one.state != "COMPLETED"]
    active = sorted((one for one in elements if not one.ended), key=lambda s: s.state != "RUNNING")
    if failed or not active:
        return (failed + elements)[0]
    nodes = sorted({one.nodes for one in active if one.nodes})
    return replace(active[0], nodes=",".join(nodes))


def _element_statuses(job: str, fingerprint: str) -> list[JobStatus]:
    """The states of a job, or of all elements of an array; empty while Slurm does not answer."""
    code, output = run_command("scontrol", "--oneliner", "show", "job", job)
    if code == 0:
        comment = job_comment(fingerprint)
        statuses = [_parse_job(line) for line in output.strip().splitlines()]
        of_run = [one for one in statuses if not one.comment or comment in one.comment]
        return of_run or [JobStatus(NOT_FOUND)]
    forgotten = "Invalid job id" in output
    if not forgotten:
        code, output = run_command("squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%N")
        rows = [line.split("|") for line in output.strip().splitlines() if line.count("|") == 2]
        if code == 0 and rows:
            return [JobStatus(state, reason, nodes=nodes) for state, reason, nodes in rows]
        forgotten = (code == 0 and not output.strip()) or "Invalid job id" in output
    return (_accounting_statuses(job) or [JobStatus(NOT_FOUND)]) if forgotten else []


def _accounting_statuses(job: str) -> list[JobStatus]:
    """The states of an ended job in Slurm's database; empty without accounting."""
    command = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}")
    code, output = run_command(*command, "--format=State,ExitCode,NodeList")
    rows = [line.split("|") for line in output.strip().splitlines() if line.count("|") == 2]
    statuses = [JobStatus(state.split()[0], exit=end, nodes=nodes) for state, end, nodes in rows]
    return [one for one in statuses if not code and one.ended]  # some records are never closed


def active_jobs(fingerprint: str) -> dict[str, JobStatus]:
    """This user's jobs of a run that have not ended, by id. An array counts as one job.

    Raises UserError when squeue fails.
    """
    code, output = run_command("squeue", "--noheader", f"--user={os.getuid()}", "--format=%F|%k")
    if code:
        raise UserError(f"Slurm's squeue does not work here: {output.strip()}")
    rows = (line.partition("|") for line in output.splitlines())
    comment = job_comment(fingerprint)
    ids = dict.fromkeys(job for job, _, text in rows if comment in text)
    active = {
        job: [one for one in _element_statuses(job, fingerprint) if not one.ended] for job in ids
    }
    return {job: elements[0] for job, elements in active.items() if elements}


def requeue(job: str) -> bool:
    """Puts a running job back into the queue. Returns whether Slurm accepted the request."""
    code, output = run_command("scontrol", "requeue", job)
    if code:
        print(f"scontrol requeue {job}: {output.strip()}", flush=True)
    return code == 0


def cancel(job: str) -> None:
    """Cancels a job. Raises UserError when Slurm refuses."""
    code, output = run_command("scancel", job)
    if code:
        raise UserError(f"scancel {job}: {output.strip()}")


def node_address(name: str) -> str:
    """The network address of a node: its NodeAddr, or else its name."""
    _, output = run_command("scontrol", "--oneliner", "show", "node", name)
    return parse_fields(output).get("NodeAddr", name)


def parse_fields(line: str) -> dict[str, str]:
    """The NAME=VALUE pairs in one line of `scontrol --oneliner`. Values may contain spaces."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|$)", line.strip()))


def _parse_job(line: str) -> JobStatus:
    fields = parse_fields(line)
    names = ("JobState", "Reason", "ExitCode", "NodeList", "Comment", "StdOut", "ArrayTaskId")
    return JobStatus(*(fields.get(name, "").replace("(null)", "") for name in names))


def environment_outside_jobs() -> dict[str, str]:
    """The environment without variables that would change what Slurm's commands do.

    These are the variables of a surrounding job, SBATCH_EXPORT, which decides whether a job gets
    the environment, and options for the output of squeue, scontrol and sacct.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(_CHANGING_VARIABLES)
    }


def max_array_size() -> int | None:
    """The largest number of jobs that the cluster allows in an array; None if Slurm does not say
    so."""
    _, config = run_command("scontrol", "show", "config")
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return int(match[1]) if match else None


def run_command(*command: str, script: str | None = None) -> tuple[int, str]:
    """Runs one of Slurm's commands; returns its exit code and its output.

    The exit code is 127 if the command is not installed, and 124 if it does not end within a
    minute.

    Args:
        *command: the command and its arguments.
        script: standard input for sbatch. The output then includes stderr, and otherwise only if
            the command failed.
    """
    is_sbatch = script is not None
    try:
        done = subprocess.run(
            command,
            input=script,
            env=environment_outside_jobs(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if is_sbatch else subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer"
    return done.returncode, done.stdout + ((done.stderr or "") if done.returncode else "")
