"""Jobs on this machine, in processes of their own: the counterpart of slurm/scheduler.py.

The id of a job is the process id of the shell that runs the `setup` lines and then submitit's
controller, which starts the tasks. Both keep running after the launcher has ended.
"""

import shlex
import socket

import psutil

from salmask.errors import UserError
from slurm.scheduler import NOT_FOUND, JobStatus

_CONTROLLER = "-m submitit.local._local "  # at the end of the shell's script, before the folder


def job_status(job: str, fingerprint: str) -> JobStatus:
    """The state of a run's job: RUNNING, or NOT_FOUND once it has ended."""
    return active_jobs(fingerprint).get(job, JobStatus(NOT_FOUND))


def active_jobs(fingerprint: str) -> dict[str, JobStatus]:
    """The jobs of a run on this machine, by id."""
    jobs = {}
    for process in psutil.process_iter(["cmdline"]):  # empty for a process that has ended
        script = (process.info["cmdline"] or [""])[-1]
        folder = _first_word(script.partition(_CONTROLLER)[2])
        if folder and fingerprint in folder:
            log = f"{folder}/{process.pid}_0_log.out"
            jobs[str(process.pid)] = JobStatus("RUNNING", nodes=socket.gethostname(), log=log)
    return jobs


def _first_word(text: str) -> str:
    """The first word of a shell command, without its quotes."""
    try:
        return next(iter(shlex.split(text)), "")
    except ValueError:  # no shell command
        return ""


def cancel(job: str) -> None:
    """Sends SIGTERM to all tasks of a job. Raises UserError when that is not permitted."""
    try:
        shell = psutil.Process(int(job))
        for process in shell.children() or [shell]:  # the shell ends with its child
            process.terminate()
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise UserError(f"job {job} belongs to another user") from None
