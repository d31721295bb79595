"""Pretraining jobs that are interrupted in every way.

Each resumed run must give the same bytes as an undisturbed one and leave nothing behind. All events
run at the same time, because most of their time is waiting. tests/helpers/paused_pretrain.py pauses
a job at a given step, so that no test depends on the speed of the machine.
"""

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from salmask.files import tree_digest
from salmask.train import checkpoint
from tests.helpers.project import TINY
from tests.helpers.workspace import Workspace, leftovers, output_of, read_until, wait_until

pytestmark = pytest.mark.slurm

RUN = "blur"
STEP = 5  # of 12: where most jobs pause
STAGE = Path(__file__).parents[1] / "helpers" / "paused_pretrain.py"
LIMIT = 300.0  # seconds until a test fails
OFTEN = {"checkpoint_minutes": 1e-6}
FREE_BYTES = 1 << 16  # on the full disk: enough for a log, too few for a checkpoint
FILES_OF_A_RUN = ["DONE", "job.json", "jobs", "launch.lock", "lock", "out"]


class PausedWorkspace(Workspace):
    """A project's folder in which one pretraining is launched and paused."""

    def __init__(self, folder: Path, cluster, at_end: ExitStack) -> None:
        super().__init__(folder, str(cluster.conf))
        self.cluster, self.at_end = cluster, at_end
        self.write_profile(**OFTEN)
        self.pause_at(STEP)

    def pause_at(self, step: int | str) -> None:
        """Lets the job continue and pause at a step; any other text lets it run to the end."""
        partial = self.folder / "pause_at.new"
        partial.write_text(str(step))
        partial.replace(self.folder / "pause_at")

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        process = super().start(*command, **env)
        self.at_end.callback(kill_session, process)  # after a failure it would wait without end
        return process

    def stage(self) -> subprocess.Popen[str]:
        return self.start(str(STAGE), "--run", RUN, PYTHONPATH=str(self.folder))

    def paused(self, launcher: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """Waits until the job pauses at the step, and returns its launcher."""
        step = int((self.folder / "pause_at").read_text())
        reached = f"runs/*/*/step-{step:09d}.pt"
        wait_until(lambda: list(self.folder.glob(reached)) or launcher.poll() is not None, LIMIT)
        assert launcher.poll() is None, output_of(launcher)
        return launcher

    def start_steps(self) -> list[int]:
        """The step from which each start continued."""
        return [int(step) for step in (self.folder / "starts").read_text().splitlines()]


def done(launcher: subprocess.Popen[str]) -> str:
    return output_of(launcher, 0, LIMIT)


def failed(launcher: subprocess.Popen[str]) -> str:
    return output_of(launcher, 1, LIMIT)


def attached(launcher: subprocess.Popen[str]) -> None:
    """Waits until the launcher says that it attached to a job."""
    assert "submitted as job" not in read_until(launcher, ": attached to job ")


def kill_session(launcher: subprocess.Popen[str]) -> None:
    """Kills all processes of a process's session, unless it has ended."""
    if launcher.poll() is None:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate()


# ----------------------------------------------------------------------------------- the events


def undisturbed(workspace: PausedWorkspace) -> None:
    workspace.pause_at("nowhere")
    done(workspace.stage())
    assert workspace.start_steps() == [0]


def killed(workspace: PausedWorkspace) -> None:
    """The task is killed and the newest checkpoint damaged; the next job is cancelled."""
    launcher = workspace.paused(workspace.stage())
    os.kill(workspace.first_task_pid(RUN), signal.SIGKILL)
    assert "exit code 137" in failed(launcher)
    newest = workspace.run_folder(RUN) / "work" / f"step-{STEP:09d}.pt"
    os.truncate(newest, newest.stat().st_size // 2)

    workspace.pause_at(STEP + 1)
    launcher = workspace.paused(workspace.stage())
    assert workspace.start_steps() == [0, STEP - 1]
    workspace.cluster.run("scancel", workspace.job_id(RUN))
    output = failed(launcher)
    assert "ended as CANCELLED" in output and f"{newest.name} is damaged" in output
    done(workspace.stage())
    # The stop signal made the job save once more.
    assert workspace.start_steps() == [0, STEP - 1, STEP + 2]


def killed_while_saving(workspace: PausedWorkspace) -> None:
    """The task is killed half-way through writing a checkpoint."""
    launcher = workspace.paused(workspace.stage())
    (workspace.folder / "kill_while_saving").touch()
    workspace.pause_at("nowhere")
    assert "exit code 137" in failed(launcher)
    (partial,) = workspace.run_folder(RUN).glob("work/*.partial")
    assert partial.stat().st_size
    done(workspace.stage())
    assert workspace.start_steps() == [0, STEP]


def orphaned(workspace: PausedWorkspace) -> None:
    """`dvc repro` and its children are killed, and then a second launcher. Then Slurm requeues the
    job."""
    launcher = workspace.paused(repro(workspace))
    kill_session(launcher)
    launcher = workspace.stage()
    attached(launcher)
    kill_session(launcher)
    launcher = repro(workspace)
    attached(launcher)
    job = workspace.job_id(RUN)
    workspace.cluster.run("scontrol", "requeue", job)
    done(launcher)
    assert workspace.start_steps() == [0, STEP + 1]
    assert workspace.cluster.job(job)["Restarts"] == "1"


def repro(workspace: PausedWorkspace) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stage = ["repro", "--single-item", f"pretrain@{RUN}"]
    return workspace.start("-m", "dvc", *stage, PATH=path, PYTHONPATH=str(workspace.folder))


def time_up(workspace: PausedWorkspace) -> None:
    """The job reaches its time limit, which is set once the job is paused, however slow its start.

    Slurm checks limits twice a minute and sends the signal at the last check that is early enough.
    """
    workspace.write_profile(**OFTEN, time_min=30, signal_seconds=5)
    launcher, cluster = workspace.paused(workspace.stage()), workspace.cluster
    job = workspace.job_id(RUN)
    hours, minutes, seconds = (int(part) for part in cluster.job(job)["RunTime"].split(":"))
    limit = 60 * hours + minutes + (seconds + 40) // 60 + 1  # 40 to 100 seconds from now
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", LIMIT)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert "putting this job back into the queue" in done(launcher)
    assert workspace.start_steps() == [0, STEP + 1]
    assert cluster.job(job)["Restarts"] == "1"


def disk_full(workspace: PausedWorkspace) -> None:
    runs = workspace.folder / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(runs)]
    mounted = subprocess.run(mount, text=True, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.strip()}")
    workspace.at_end.callback(subprocess.run, ["umount", str(runs)], check=True)

    launcher = workspace.paused(workspace.stage())
    ballast = runs / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(1 << 12)):
            pass
    os.truncate(ballast, ballast.stat().st_size - FREE_BYTES)
    workspace.pause_at("nowhere")
    output = failed(launcher)
    folder = workspace.run_folder(RUN)
    assert f"error: no space is left on the disk of {folder}: free some space" in output
    assert "Traceback" not in output
    assert checkpoint.saved(workspace.run_folder(RUN) / "work")[0].stem == f"step-{STEP:09d}"

    (runs / "more").write_bytes(bytes(shutil.disk_usage(runs).free))
    output = failed(workspace.stage())
    assert "no space is left on the disk of" in output and "Traceback" not in output
    (runs / "more").unlink()
    ballast.unlink()
    done(workspace.stage())
    assert workspace.start_steps() == [0, STEP]


def failing_nodes(lost: PausedWorkspace, unseen: PausedWorkspace) -> None:
    """Two jobs on a cluster of their own. The slurmd of one job's node is restarted, then the whole
    node fails. The node of the other job becomes unreachable while its processes keep running, so
    Slurm starts the job on the other node as well."""
    cluster = lost.cluster
    launchers = [lost.stage(), unseen.stage()]
    lost.paused(launchers[0])
    unseen.paused(launchers[1])
    jobs = [workspace.job_id(RUN) for workspace in (lost, unseen)]
    nodes = [cluster.job(job)["NodeList"] for job in jobs]
    assert sorted(nodes) == ["n1", "n2"]

    def script(*arguments: str) -> None:
        done = cluster.script(*arguments)
        assert done.returncode == 0, done.stderr

    def mark_down(node: str) -> None:  # the controller would need minutes to notice
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    script("node-down", nodes[0], "--keep-jobs")
    script("node-up", nodes[0])
    assert cluster.job(jobs[0])["JobState"] == "RUNNING"
    script("node-down", nodes[0])
    mark_down(nodes[0])
    lost.pause_at("nowhere")
    done(launchers[0])
    assert lost.start_steps() == [0, STEP]
    assert cluster.job(jobs[0])["NodeList"] == nodes[1]
    script("node-up", nodes[0])

    script("node-down", nodes[1], "--keep-jobs")
    mark_down(nodes[1])
    log = unseen.run_folder(RUN) / "jobs" / f"{jobs[1]}_0_log.out"
    wait_until(lambda: "another process works in" in log.read_text(), LIMIT)
    unseen.pause_at("nowhere")
    done(launchers[1])
    cluster.wait(jobs[1], "COMPLETED", seconds=LIMIT)
    assert unseen.start_steps() == [0]
    assert "this run is done already" in log.read_text()


# ----------------------------------------------------------------------------------- the results


def checked_digest(workspace: PausedWorkspace) -> str:
    """The digest of the encoder's folder. Fails if any process or temporary file is left."""
    run = workspace.run_folder(RUN)
    assert sorted(p.name for p in run.iterdir()) == FILES_OF_A_RUN
    queued = ["squeue", "--noheader", f"--name={run.name}", "--format=%Z"]
    wait_until(lambda: str(workspace.folder) not in workspace.cluster.run(*queued).splitlines())
    wait_until(lambda: leftovers(workspace.folder) == [])
    return tree_digest(workspace.folder / "artifacts" / "pretrain" / RUN)


@pytest.fixture(scope="module")
def endings(
    tmp_path_factory, cluster, own_cluster, copy_prepared
) -> Iterator[dict[str, Future[set[str]]]]:
    """The digests of the artifacts after each event, or the event's exception."""
    params = copy.deepcopy(TINY)
    params["train"]["epochs"] = 4
    params["runs"] = {RUN: {"mask": {"name": RUN}}}
    home = tmp_path_factory.mktemp("project")
    copy_prepared(home, params).stage("code")
    pipeline = (home / "dvc.yaml").read_text()
    script = "tests/helpers/paused_pretrain.py"
    (home / "dvc.yaml").write_text(pipeline.replace("-m stages.pretrain", script))

    def paused_workspace(name: str, on, at_end: ExitStack) -> PausedWorkspace:
        return PausedWorkspace(home if name == "orphaned" else sibling(home, name), on, at_end)

    def one(event: Callable[[PausedWorkspace], None]) -> set[str]:
        with ExitStack() as at_end:
            workspace = paused_workspace(event.__name__, cluster, at_end)
            event(workspace)
            return {checked_digest(workspace)}

    def two(event: Callable[[PausedWorkspace, PausedWorkspace], None]) -> set[str]:
        with own_cluster() as broken, ExitStack() as at_end:
            both = [paused_workspace(name, broken, at_end) for name in ("lost", "unseen")]
            event(*both)
            return {checked_digest(workspace) for workspace in both}

    with ThreadPoolExecutor(8) as pool:
        futures = {"failing_nodes": pool.submit(two, failing_nodes)}
        yield futures | {event.__name__: pool.submit(one, event) for event in SINGLE_JOB_EVENTS}


SINGLE_JOB_EVENTS = [time_up, undisturbed, killed, killed_while_saving, orphaned, disk_full]


def sibling(home: Path, name: str) -> Path:
    """A folder beside the project, with the same code and data but its own results."""
    folder = home.with_name(name)
    (folder / "artifacts").mkdir(parents=True)
    for place in (Path(), Path("artifacts")):
        for path in (home / place).iterdir():
            if not (folder / place / path.name).exists() and path.name not in (".git", "runs"):
                (folder / place / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    "event", ["killed", "killed_while_saving", "orphaned", "time_up", "disk_full", "failing_nodes"]
)
def test_an_interrupted_job_gives_the_same_result(endings, event):
    assert endings[event].result() == endings["undisturbed"].result()
