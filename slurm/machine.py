"""Jobs on this machine, apart from the process that waits for them: what `scheduler` is for Slurm.

A job's id is the process id of submitit's controller, which starts the tasks and outlives us.
"""

import os
import signal
import socket
import subprocess
from pathlib import Path

from salmask.errors import UserError
from slurm.scheduler import GONE, Status

_CONTROLLER = "submitit.local._local"


def ask(job: str, fingerprint: str) -> Status:
    """Whether a run's job of this id runs; what has ended is forgotten."""
    return live(fingerprint).get(job, Status(GONE))


def live(fingerprint: str) -> dict[str, Status]:
    """The jobs of a run on this machine, by id."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,stat=,command="], capture_output=True, text=True, check=True
    )
    found = {}
    for line in listed.stdout.splitlines():
        job, state, *command = line.split()
        if _CONTROLLER in command and fingerprint in command[-1] and "Z" not in state:
            log = Path(command[-1]) / f"{job}_0_log.out"
            found[job] = Status("RUNNING", nodes=socket.gethostname(), log=str(log))
    return found


def cancel(job: str) -> None:
    """Asks all tasks of a job to stop. Raises UserError when that is not allowed."""
    try:
        os.kill(int(job), signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise UserError(f"job {job} is somebody else's") from None
