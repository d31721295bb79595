"""Runs inside a job, in each of its tasks.

A job may start any number of times. It does nothing when the work is done, and continues from the
newest checkpoint when it is not. The launcher imports this module too, so the functions that need
torch import it.
"""

import errno
import hashlib
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
from submitit import JobEnvironment

from salmask.errors import (
    DataGoneError,
    InterruptedRunError,
    NonFiniteLossError,
    UserError,
    WorkerDiedError,
)
from salmask.job import Job
from salmask.provenance import changed_files
from salmask.stop_signals import STOP_SIGNALS, raise_interrupted
from salmask.temporary_folder import use_short_temporary_folder
from slurm import scheduler
from slurm.errors import DiskFullError, named_folder_errors
from slurm.folder import finish, is_done, locked, make_folders, make_job, recorded_failure
from slurm.job_spec import JobArray, JobSpec
from slurm.profile import Profile

if TYPE_CHECKING:
    import torch

CODE = Path(__file__).parents[1]  # the folder from which this process imports its code
_OTHER_TASKS_SECONDS = 10.0  # how long other tasks wait for the first one to requeue the job
_LOCK_MINUTES = 10.0  # how long to wait for a writer on a node that Slurm considers lost
_GROUP_TIMEOUT = timedelta(minutes=20)
_EXIT_FAILED, _EXIT_USER_ERROR, _EXIT_STOPPED = 1, 2, 143
_all_tasks_done = threading.Event()


def main(content: bytes, sha256: str) -> None:
    """Does the work, or this job's share of it, unless it is done.

    Expected errors end the process with a message instead of a traceback, as in a stage. A job that
    receives SIGUSR2 goes back into Slurm's queue.

    Args:
        content: a pickled JobSpec. A job may read it from its file long after it was written.
        sha256: of the content, hex.
    """
    for number in (signal.SIGCONT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # replaces submitit's handlers
    if hashlib.sha256(content).hexdigest() != sha256:
        _exit("error: the file of this job is damaged: run `dvc repro` again", _EXIT_USER_ERROR)
    spec: JobSpec = pickle.loads(content)
    for number in STOP_SIGNALS:
        signal.signal(number, raise_interrupted)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see slurm/task.py
        use_short_temporary_folder()
        if not _in_slurm():
            threading.Thread(target=_watch_job, daemon=True).start()
        with recorded_failure(spec.folder), named_folder_errors(spec.folder):
            if not spec.array or _do_share(spec, spec.array):
                # The first task holds the folder's lock, so that no two jobs work in it.
                with nullcontext() if _rank() else locked(spec.folder, minutes=_LOCK_MINUTES):
                    _do_work(spec)
    except DataGoneError as error:
        _exit(f"stopped: {error}", _EXIT_FAILED)
    except UserError as error:
        _exit(f"error: {error}", _EXIT_USER_ERROR)
    except (NonFiniteLossError, WorkerDiedError, DiskFullError) as error:
        _exit(f"error: {error}", _EXIT_FAILED)
    except InterruptedRunError as error:
        _ignore_stop_signals()
        if error.number == signal.SIGUSR2 and _in_slurm():
            _requeue(spec.profile)
        _exit(f"stopped: {error}", _EXIT_STOPPED)
    except Exception:
        traceback.print_exc()
        _exit("the work failed: see above", _EXIT_FAILED)


def _do_work(spec: JobSpec) -> None:
    from salmask.distributed import broadcast_from_first

    job, folder = make_job(spec, _device(spec.profile)), spec.folder
    if _rank() == 0 and not is_done(folder):
        _prepare(spec, job)
    with _process_group(job.device):
        if broadcast_from_first(lambda: is_done(folder)):
            print("this run is done already", flush=True)
            return
        spec.work(job, **spec.arguments)
        if _rank() == 0:
            _check_unchanged(spec)
            finish(folder, job, spec.recipe)


def _do_share(spec: JobSpec, array: JobArray) -> bool:
    """Does this job's share. Returns whether all shares are complete.

    The last job of an array then completes the work. The jobs hold the folder's lock in shared
    mode, which excludes other launchers only; a lock of its own protects each share.
    """
    own = locked(spec.folder, f"lock.{spec.index}", _LOCK_MINUTES)
    with own, locked(spec.folder, minutes=_LOCK_MINUTES, shared=True):
        if is_done(spec.folder):
            print("this run is done already", flush=True)
            return False
        job = make_job(spec, _device(spec.profile))
        _prepare(spec, job)
        return array.fill(job, spec.index, spec.size, **spec.arguments)


def _prepare(spec: JobSpec, job: Job) -> None:
    (spec.folder / "DONE").unlink(missing_ok=True)
    _check_unchanged(spec)
    make_folders(job)


def _check_unchanged(spec: JobSpec) -> None:
    """Raises UserError if code or inputs differ from those when the job was submitted."""
    if changed := changed_files(spec.recipe, spec.project, CODE):
        raise UserError(
            f"{' and '.join(changed)} changed since this job was submitted: this job would give "
            "another result than the one requested; run `dvc repro` again"
        )


# ------------------------------------------------------------------------------- several tasks


def _rank() -> int:
    return JobEnvironment().global_rank


def _in_slurm() -> bool:
    return JobEnvironment().cluster == "slurm"


def _device(profile: Profile) -> "torch.device":
    """The device of this task: on a node with GPUs, the GPU of its local rank.

    Works whether Slurm shows a task one GPU or all of the node. Raises UserError if the profile
    requests GPUs and torch finds none.
    """
    import torch

    from salmask.devices import pick_device

    device = pick_device()
    if profile.gpus and device.type != "cuda" and not os.environ.get("SALMASK_DEVICE"):
        raise UserError(
            f"the profile requests GPUs (gpus: {profile.gpus}), but torch {torch.__version__} "
            "finds none: install a build of torch for GPUs that fits the driver, or set "
            "SALMASK_DEVICE: cpu under `environment` in the profile"
        )
    if device.type == "cuda" and device.index is None:
        local = JobEnvironment().local_rank % torch.cuda.device_count()
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return device


@contextmanager
def _process_group(device: "torch.device") -> Iterator[None]:
    """A process group over all tasks of the job; nothing if there is one task."""
    import torch.distributed as dist

    from salmask.distributed import all_reduce_max

    tasks = JobEnvironment().num_tasks
    if tasks == 1:
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{_first_task_address()}",
        rank=_rank(),
        world_size=tasks,
        timeout=_GROUP_TIMEOUT,
    )
    yield
    all_reduce_max(0)  # wait for the other tasks
    _all_tasks_done.set()
    dist.destroy_process_group()


def _watch_job() -> None:
    """Ends this task of a local job when its controller or another task has ended, as Slurm does.

    Otherwise, it would run on unseen, or wait for the other task in a collective operation.
    """
    controller, tasks = os.getppid(), JobEnvironment().num_tasks
    while True:
        time.sleep(1)
        if os.getppid() != controller:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            states = [process.status() for process in psutil.Process(controller).children()]
        except psutil.Error:  # a process ended at this moment
            continue
        running = len(states) - states.count(psutil.STATUS_ZOMBIE)
        if running < tasks and not _all_tasks_done.is_set():
            _exit("stopped: another task of this job ended", _EXIT_FAILED)


def _first_task_address() -> str:
    """HOST:PORT at which the first task listens.

    The host is MASTER_ADDR if it is set, else the name of the first node, or its address in Slurm
    if the name does not resolve. The port is MASTER_PORT if it is set, else a function of the job's
    number, below the range that Linux gives to clients.

    Raises UserError in the first task if another program listens at the port.
    """
    job = JobEnvironment().job_id
    host = os.environ.get("MASTER_ADDR", "localhost")
    if _in_slurm():
        first = JobEnvironment().hostnames[0]
        host = os.environ.get("MASTER_ADDR") or first
        try:
            socket.gethostbyname(host)
        except OSError:
            host = scheduler.node_address(first)
    port = int(os.environ.get("MASTER_PORT") or 20000 + int(job) % 10000)
    if _rank() == 0 and not _is_free(port):
        raise UserError(
            f"another program uses port {port} of {socket.gethostname()}: run `dvc repro` again, "
            "which submits a job with another port, or set MASTER_PORT under `environment` in the "
            "profile"
        )
    return f"{host}:{port}"


def _is_free(port: int) -> bool:
    """Whether a server can listen at a port of this machine."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


# ------------------------------------------------------------------------------------- the end


def _requeue(profile: Profile) -> None:
    """Puts the job back into the queue after SIGUSR2, unless Slurm is ending the job anyway.

    Slurm sends SIGUSR2 before the time limit. It sends SIGTERM before scancel, its own requeue, or
    when another task failed, and then the job must not go back.

    The first task requeues the job. If it is blocked in a collective operation, it does not run its
    signal handler; so after some seconds another task does it. Until then no task exits, because
    srun would kill all others.
    """
    if _rank():
        _sleep_until_killed(_OTHER_TASKS_SECONDS + _rank())
    job, restarts = JobEnvironment().job_id, int(os.environ.get("SLURM_RESTART_COUNT", 0))
    status = scheduler.job_status(job, "")
    if status is None or status.state != "RUNNING":
        return
    if restarts >= profile.max_requeues:
        print(f"this job has started {restarts + 1} times: not requeued (max_requeues)", flush=True)
        return
    print("putting this job back into the queue", flush=True)
    if scheduler.requeue(job):
        _sleep_until_killed(60)


def _sleep_until_killed(seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)


def _ignore_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit(message: str, code: int) -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        _ignore_stop_signals()
    print(message, flush=True)
    if not _in_slurm():
        os.kill(os.getppid(), signal.SIGTERM)  # ends the other tasks, as srun does
    os._exit(code)  # a normal exit could wait for the process group
