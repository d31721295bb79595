"""Jobs on this machine, in processes of their own: the counterpart of slurm/scheduler.py.

The id of a job is the process id of submitit's controller, which starts the tasks and keeps running
after the launcher has ended. With `setup` lines, it is the process id of the shell that runs them
and then the controller.
"""

import signal
import socket

import psutil

from salmask.errors import UserError
from slurm.scheduler import NOT_FOUND, JobStatus

_CONTROLLER = "submitit.local._local"


def job_status(job: str, fingerprint: str) -> JobStatus:
    """The state of a run's job: RUNNING, or NOT_FOUND once it has ended."""
    return active_jobs(fingerprint).get(job, JobStatus(NOT_FOUND))


def active_jobs(fingerprint: str) -> dict[str, JobStatus]:
    """The jobs of a run on this machine, by id."""
    return {
        job: JobStatus("RUNNING", nodes=socket.gethostname(), log=f"{logs}/{job}_0_log.out")
        for _, job, logs in _controllers()
        if fingerprint in logs
    }


def cancel(job: str) -> None:
    """Sends SIGTERM to all tasks of a job. Raises UserError when that is not permitted."""
    processes = [process for process, its_job, _ in _controllers() if its_job == job]
    controllers = [process for process in processes if str(process.pid) != job]
    for process in controllers or processes:  # the shell ends with its controller
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            raise UserError(f"job {job} belongs to another user") from None


def _controllers() -> list[tuple[psutil.Process, str, str]]:
    """All controllers, and the shells that started one: process, job id, folder of the logs."""
    folders: dict[psutil.Process, str] = {}
    parents: dict[int, int] = {}
    for process in psutil.process_iter(["cmdline", "ppid", "status"]):
        folder = _log_folder(process.info["cmdline"] or [])
        if folder and process.info["status"] != psutil.STATUS_ZOMBIE:
            folders[process] = folder
            parents[process.pid] = process.info["ppid"]
    jobs = {pid: parent if parent in parents else pid for pid, parent in parents.items()}
    return [(process, str(jobs[process.pid]), folder) for process, folder in folders.items()]


def _log_folder(command: list[str]) -> str:
    """The last argument of a controller, or of the one that a shell's script starts; else ""."""
    if _CONTROLLER in command:
        return command[-1]
    return command[-1].partition(f"-m {_CONTROLLER} ")[2].strip("'") if command else ""
