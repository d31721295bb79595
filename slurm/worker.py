"""What runs inside a job, in each of its tasks. May start any number of times: it does nothing
when the work is done, and goes on from the newest checkpoint when it is not."""

import contextlib
import os
import shlex
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from submitit import JobEnvironment

from salmask.code_digests import code_digest
from salmask.devices import pick_device
from salmask.distributed import broadcast_from_first
from salmask.errors import DataGoneError, InterruptedRunError, NonFiniteLossError, UserError
from salmask.job import Job
from salmask.provenance import Recipe, tree_digest
from slurm import scheduler
from slurm.errors import DiskFullError, full_disk_named
from slurm.folder import Shared, Work, finish, is_done, job_in, locked, make_places
from slurm.profile import Profile

CODE = Path(__file__).parents[1]  # what this process runs
_PATIENCE_SECONDS = 10.0  # of the other tasks, with the first
_LOCK_MINUTES = 10.0  # for a writer on a node that Slurm has given up
_MEETING = timedelta(minutes=20)
_FAILED, _MISTAKE, _STOPPED = 1, 2, 143


@dataclass(frozen=True)
class JobSpec:
    """What a job is asked for. folder: the run's. project: where its inputs lie. shared: how the
    job array to which it belongs, if to one, shares the work; as its `number` of `count`."""

    folder: Path
    project: Path
    recipe: Recipe
    chosen: Profile
    seed: int
    work: Work
    arguments: dict[str, Any]
    shared: Shared | None = None
    number: int = 0
    count: int = 1


def setup(chosen: Profile) -> list[str]:
    """The lines of bash before the tasks start; one that fails ends the job and names itself."""
    lines = [
        """trap 'echo "setup failed with exit code $?: $BASH_COMMAND"; exit 1' ERR""",
        *(f"export {name}={shlex.quote(v)}" for name, v in chosen.environment.items()),
        *chosen.setup,
        "trap - ERR",
    ]
    return lines


def main(spec: JobSpec) -> None:
    """Does the work, or this job's share of it, unless it is done.

    Ends the process with a message instead of a traceback where a stage would; when it was asked
    to stop, puts the job back into the queue.
    """
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit's handlers are not for us
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _stop)
    try:
        with full_disk_named(spec.folder):
            if not spec.shared or _share(spec, spec.shared):
                with _first_alone(spec.folder):
                    _work(spec)
    except DataGoneError as error:
        _leave(f"stopped: {error}", _FAILED)
    except UserError as error:
        _leave(f"error: {error}", _MISTAKE)
    except (NonFiniteLossError, DiskFullError) as error:
        _leave(f"error: {error}", _FAILED)
    except InterruptedRunError as error:
        _listen_no_more()
        if error.number == signal.SIGUSR2 and _in_slurm():
            _again(spec.chosen)
        _leave(f"stopped: {error}", _STOPPED)
    except Exception:
        traceback.print_exc()
        _leave("the work failed: see above", _FAILED)


def _work(spec: JobSpec) -> None:
    job, folder = _job(spec), spec.folder
    if _rank() == 0 and not is_done(folder):
        _begin(spec, job)
    with _together(job.device):
        if broadcast_from_first(lambda: is_done(folder)):
            print("this was done already", flush=True)
            return
        spec.work(job, **spec.arguments)
        if _rank() == 0:
            _check_unchanged(spec)
            finish(folder, job, spec.recipe)


def _share(spec: JobSpec, shared: Shared) -> bool:
    """Does this job's share; whether all is there, so that the last one of an array ends the work.

    The jobs of an array keep others out of the folder, but not each other.
    """
    own = locked(spec.folder, f"lock.{spec.number}", _LOCK_MINUTES)
    with own, locked(spec.folder, minutes=_LOCK_MINUTES, shared=True):
        if is_done(spec.folder):
            print("this was done already", flush=True)
            return False
        job = _job(spec)
        _begin(spec, job)
        return shared.fill(job, spec.number, spec.count, **spec.arguments)


def _job(spec: JobSpec) -> Job:
    torch.set_num_threads(spec.chosen.cores())
    return job_in(spec.folder, spec.recipe, spec.seed, _device(spec.chosen), spec.chosen)


def _begin(spec: JobSpec, job: Job) -> None:
    (spec.folder / "DONE").unlink(missing_ok=True)
    _check_unchanged(spec)
    make_places(job)


def _check_unchanged(spec: JobSpec) -> None:
    """A job may start long after it was submitted: what decides its result must still be that."""
    recipe, project = spec.recipe, spec.project
    advice = "this job's result would not be what was asked for; `dvc repro` submits another"
    if code_digest(recipe.modules, CODE) != recipe.code:
        raise UserError(f"the code in {CODE} changed since this job was submitted: {advice}")
    for name, sha256 in recipe.inputs.items():
        if not (project / name).exists() or tree_digest(project / name) != sha256:
            raise UserError(f"{project / name} changed since this job was submitted: {advice}")


# ---------------------------------------------------------------------------------- many tasks


def _rank() -> int:
    return JobEnvironment().global_rank


def _tasks() -> int:
    return JobEnvironment().num_tasks


def _in_slurm() -> bool:
    return JobEnvironment().cluster == "slurm"


@contextlib.contextmanager
def _first_alone(folder: Path) -> Iterator[None]:
    """The first task holds the folder's lock, so that no two jobs work there."""
    if _rank():
        yield
        return
    with locked(folder, minutes=_LOCK_MINUTES):
        yield


def _device(chosen: Profile) -> torch.device:
    """This task's: its own GPU of the node's, whether it sees one or all of them. Raises UserError
    where there should be one."""
    device = pick_device()
    if chosen.gpus and device.type != "cuda" and not os.environ.get("SALMASK_DEVICE"):
        raise UserError(
            f"the profile gives this job a GPU (gpus: {chosen.gpus}) and torch {torch.__version__} "
            "finds none: is it a build for CPUs, or for a newer driver? SALMASK_DEVICE=cpu, under "
            "`environment`, goes on without"
        )
    if device.type == "cuda" and device.index is None:
        local = JobEnvironment().local_rank % torch.cuda.device_count()
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _together(device: torch.device) -> Iterator[None]:
    """A process group over the job's tasks, if there are several."""
    if _tasks() == 1:
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{_meeting_point()}",
        rank=_rank(),
        world_size=_tasks(),
        timeout=_MEETING,
    )
    yield
    dist.destroy_process_group()


def _meeting_point() -> str:
    """ADDRESS:PORT of the first task: MASTER_ADDR if set, else its node's name, or its address in
    Slurm where the name means nothing. The port is below those that the kernel gives clients."""
    job = JobEnvironment().job_id
    host = os.environ.get("MASTER_ADDR", "localhost")
    if _in_slurm():
        nodes = os.environ["SLURM_JOB_NODELIST"]
        host = os.environ.get("MASTER_ADDR") or scheduler.first_host(nodes)
        try:
            socket.gethostbyname(host)
        except OSError:
            host = scheduler.address(nodes)
    return f"{host}:{20000 + int(job) % 10000}"


# ------------------------------------------------------------------------------------- the end


def _stop(number: int, frame: FrameType | None) -> None:
    """For all the time in which the training loop does not listen itself."""
    raise InterruptedRunError("asked to stop; what is saved stays", number)


def _again(chosen: Profile) -> None:
    """Puts the job back into the queue, as SIGUSR2 asks; unless Slurm is ending the job anyway.
    SIGTERM does not ask for that: it comes before a kill by scancel, by Slurm's own requeue, and by
    srun when another task has failed, as it would again.

    The first task does it. Where it waits for the others to send something, it hears of nothing:
    then another does, and none leaves before that, or it would take all tasks with it.
    """
    if _rank():
        _await_the_end(_PATIENCE_SECONDS + _rank())
    job, restarts = JobEnvironment().job_id, int(os.environ.get("SLURM_RESTART_COUNT", 0))
    status = scheduler.ask(job, "")
    if status is None or status.state != "RUNNING":
        return
    if restarts >= chosen.max_requeues:
        print(f"this job has started {restarts + 1} times: not put back (max_requeues)", flush=True)
        return
    print("putting this job back into the queue", flush=True)
    if scheduler.requeue(job):
        _await_the_end(60)


def _await_the_end(seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)


def _listen_no_more() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _leave(message: str, code: int) -> NoReturn:
    _listen_no_more()
    print(message, flush=True)
    if not _in_slurm():
        os.kill(os.getppid(), signal.SIGTERM)  # the other tasks end too, as srun would have it
    os._exit(code)  # a process group would make others wait
