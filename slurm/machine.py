"""Jobs on this machine, apart from the process that waits for them: what `scheduler` is for Slurm.

A job's id is the process id of submitit's controller, which starts the tasks and outlives us; or
that of the shell which runs the lines of `setup` and then the controller.
"""

import os
import signal
import socket
import subprocess

from salmask.errors import UserError
from slurm.scheduler import GONE, Status

_CONTROLLER = "submitit.local._local"


def ask(job: str, fingerprint: str) -> Status:
    """Whether a run's job of this id runs; what has ended is forgotten."""
    return live(fingerprint).get(job, Status(GONE))


def live(fingerprint: str) -> dict[str, Status]:
    """The jobs of a run on this machine, by id."""
    return {
        job: Status("RUNNING", nodes=socket.gethostname(), log=f"{logs}/{job}_0_log.out")
        for _, job, logs in _processes()
        if fingerprint in logs
    }


def cancel(job: str) -> None:
    """Asks all tasks of a job to stop. Raises UserError when that is not allowed."""
    found = [process for process, its_job, _ in _processes() if its_job == job]
    controllers = [process for process in found if process != job]  # the shell ends with it
    for process in controllers or found:
        try:
            os.kill(int(process), signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise UserError(f"job {job} is somebody else's") from None


def _processes() -> list[tuple[str, str, str]]:
    """All controllers and their shells: process, job, folder of the logs."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,command="],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for line in listed.stdout.splitlines():
        process, parent, state, *command = line.split()
        if _CONTROLLER in command and "Z" not in state:
            found[process] = (parent, command[-1])
    return [(p, parent if parent in found else p, logs) for p, (parent, logs) in found.items()]
