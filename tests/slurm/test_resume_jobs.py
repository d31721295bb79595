"""Pretraining jobs that are hurt in every way: what follows by itself, or the same command again,
ends in the very bytes of a job that was left alone, and nothing stays behind.

All of them go on side by side, for most of their time is waiting. held.py says how a job is kept
where it shall be hurt, so that no test depends on how fast a machine is.
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

from salmask.provenance import tree_digest
from salmask.train import checkpoint
from tests.helpers.desk import Desk, finished, leftovers, until
from tests.helpers.project import TINY, Project

pytestmark = pytest.mark.slurm

RUN = "blur"
STEP = 5  # of 12, where most things happen
HELD = Path(__file__).parents[1] / "helpers" / "held.py"
LIMIT = 300.0  # seconds; only to end a test that has failed
OFTEN = {"checkpoint_minutes": 1e-6}
ROOM = 1 << 16  # bytes on a full disk: enough for a log, too few for a checkpoint
LEFT = ["DONE", "job.json", "jobs", "launch.lock", "lock", "out"]


class Bench(Desk):
    """A project's folder of its own in which one pretraining is launched, and held."""

    def __init__(self, folder: Path, cluster, at_end: ExitStack) -> None:
        super().__init__(folder, str(cluster.conf))
        self.cluster, self.at_end = cluster, at_end
        self.profile(**OFTEN)
        self.hold(STEP)

    def hold(self, step: int | str) -> None:
        """Lets the job go on to a step, or from where it is held to the end."""
        partial = self.folder / "hold.new"
        partial.write_text(str(step))
        partial.replace(self.folder / "hold")

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        started = super().start(*command, **env)
        self.at_end.callback(slay, started)  # after a failure it would wait for ever
        return started

    def stage(self) -> subprocess.Popen[str]:
        return self.start(str(HELD), "--run", RUN, PYTHONPATH=str(self.folder))

    def held(self, launcher: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """The launcher, once its job waits at the step."""
        step = int((self.folder / "hold").read_text())
        reached = f"runs/*/*/step-{step:09d}.pt"
        until(lambda: list(self.folder.glob(reached)) or launcher.poll() is not None, LIMIT)
        assert launcher.poll() is None, finished(launcher)
        return launcher

    def begun(self) -> list[int]:
        """The step of each start."""
        return [int(step) for step in (self.folder / "starts").open()]


def done(launcher: subprocess.Popen[str]) -> str:
    return finished(launcher, 0, LIMIT)


def failed(launcher: subprocess.Popen[str]) -> str:
    return finished(launcher, 1, LIMIT)


def attached(launcher: subprocess.Popen[str]) -> None:
    """Reads until the launcher says so."""
    assert launcher.stdout
    for line in launcher.stdout:
        assert "submitted as job" not in line
        if "is at it already; attached to it" in line:
            return
    pytest.fail("it ended without a job")


def slay(launcher: subprocess.Popen[str]) -> None:
    """Kills a process with all of its session, unless it has ended."""
    if launcher.poll() is None:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate()


# ------------------------------------------------------------------------- what happens to a job


def calm(bench: Bench) -> None:
    bench.hold("nowhere")
    done(bench.stage())
    assert bench.begun() == [0]


def killed(bench: Bench) -> None:
    """Its task is killed, and the newest checkpoint damaged; then it is cancelled."""
    launcher = bench.held(bench.stage())
    os.kill(bench.task(RUN), signal.SIGKILL)
    assert "exit code 137" in failed(launcher)
    newest = bench.run(RUN) / "work" / f"step-{STEP:09d}.pt"
    os.truncate(newest, newest.stat().st_size // 2)

    bench.hold(STEP + 1)
    launcher = bench.held(bench.stage())
    assert bench.begun() == [0, STEP - 1]
    bench.cluster.run("scancel", bench.job(RUN))
    told = failed(launcher)
    assert "ended as CANCELLED" in told and f"{newest.name} cannot be read" in told
    done(bench.stage())
    assert bench.begun() == [0, STEP - 1, STEP + 2]  # it saved once more when asked to stop


def torn(bench: Bench) -> None:
    """It is killed half-way through writing a checkpoint."""
    launcher = bench.held(bench.stage())
    (bench.folder / "tear").touch()
    bench.hold("nowhere")
    assert "exit code 137" in failed(launcher)
    (partial,) = bench.run(RUN).glob("work/*.partial")
    assert partial.stat().st_size
    done(bench.stage())
    assert bench.begun() == [0, STEP]


def orphaned(bench: Bench) -> None:
    """`dvc repro` and all its children are killed; so is the stage that is called instead; then
    Slurm takes the job back into its queue."""
    launcher = bench.held(repro(bench))
    slay(launcher)
    launcher = bench.stage()
    attached(launcher)
    slay(launcher)
    launcher = repro(bench)
    attached(launcher)
    job = bench.job(RUN)
    bench.cluster.run("scontrol", "requeue", job)
    done(launcher)
    assert bench.begun() == [0, STEP + 1]
    assert bench.cluster.job(job)["Restarts"] == "1"


def repro(bench: Bench) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stage = ["repro", "--single-item", f"pretrain@{RUN}"]
    return bench.start("-m", "dvc", *stage, PATH=path, PYTHONPATH=str(bench.folder))


def time_up(bench: Bench) -> None:
    """Slurm looks twice a minute, and warns at the look before the one that would be too late:
    here, 25 to 55 seconds after the job's start."""
    bench.profile(**OFTEN, time_min=1, signal_seconds=5)
    assert "putting this job back into the queue" in done(bench.stage())
    assert bench.begun() == [0, STEP + 1]
    assert bench.cluster.job(bench.job(RUN))["Restarts"] == "1"


def disk_full(bench: Bench) -> None:
    runs = bench.folder / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(runs)]
    mounted = subprocess.run(mount, text=True, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk to fill: {mounted.stderr.strip()}")
    bench.at_end.callback(subprocess.run, ["umount", str(runs)], check=True)

    launcher = bench.held(bench.stage())
    ballast = runs / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(1 << 12)):
            pass
    os.truncate(ballast, ballast.stat().st_size - ROOM)
    bench.hold("nowhere")
    told = failed(launcher)
    assert f"error: no space is left on the disk of {bench.run(RUN)}: make room" in told
    assert "Traceback" not in told
    assert checkpoint.saved(bench.run(RUN) / "work")[0].stem == f"step-{STEP:09d}"

    (runs / "more").write_bytes(bytes(shutil.disk_usage(runs).free))
    told = failed(bench.stage())
    assert "no space is left on the disk of" in told and "Traceback" not in told
    (runs / "more").unlink()
    ballast.unlink()
    done(bench.stage())
    assert bench.begun() == [0, STEP]


def failing_nodes(lost: Bench, unseen: Bench) -> None:
    """On a cluster of their own: the slurmd of one job's node starts again, then all of that node
    dies. The other job's node falls silent, so that Slurm starts the job elsewhere as well."""
    cluster = lost.cluster
    launchers = [lost.stage(), unseen.stage()]
    lost.held(launchers[0])
    unseen.held(launchers[1])
    jobs = [bench.job(RUN) for bench in (lost, unseen)]
    nodes = [cluster.job(job)["NodeList"] for job in jobs]
    assert sorted(nodes) == ["n1", "n2"]

    def script(*arguments: str) -> None:
        done = cluster.script(*arguments)
        assert done.returncode == 0, done.stderr

    def give_up(node: str) -> None:  # the controller would take minutes to notice
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    script("node-down", nodes[0], "--keep-jobs")
    script("node-up", nodes[0])
    assert cluster.job(jobs[0])["JobState"] == "RUNNING"
    script("node-down", nodes[0])
    give_up(nodes[0])
    lost.hold("nowhere")
    done(launchers[0])
    assert lost.begun() == [0, STEP]
    assert cluster.job(jobs[0])["NodeList"] == nodes[1]
    script("node-up", nodes[0])

    script("node-down", nodes[1], "--keep-jobs")
    give_up(nodes[1])
    log = unseen.run(RUN) / "jobs" / f"{jobs[1]}_0_log.out"
    until(lambda: "another process works in" in log.read_text(), LIMIT)
    unseen.hold("nowhere")
    done(launchers[1])
    cluster.wait(jobs[1], "COMPLETED", seconds=LIMIT)
    assert unseen.begun() == [0]
    assert "this was done already" in log.read_text()


# ---------------------------------------------------------------------------------- what is left


def tidy(bench: Bench) -> str:
    """The digest of what was made; fails if anything else is left."""
    run = bench.run(RUN)
    assert sorted(p.name for p in run.iterdir()) == LEFT
    queued = ["squeue", "--noheader", f"--name={run.name}", "--format=%Z"]
    until(lambda: str(bench.folder) not in bench.cluster.run(*queued).splitlines())
    until(lambda: leftovers(bench.folder) == [])
    return tree_digest(bench.folder / "artifacts" / "pretrain" / RUN)


@pytest.fixture(scope="module")
def endings(tmp_path_factory, cluster, own_cluster) -> Iterator[dict[str, Future[set[str]]]]:
    """What each event led to in the end: the digest of the artifact, or what went wrong."""
    params = copy.deepcopy(TINY)
    params["train"]["epochs"] = 4
    params["runs"] = {RUN: {"mask": {"name": RUN}}}
    home = tmp_path_factory.mktemp("project")
    project = Project(home, params)
    pipeline = (home / "dvc.yaml").read_text()
    (home / "dvc.yaml").write_text(pipeline.replace("-m stages.pretrain", "tests/slurm/held.py"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(project.stage, ("code", "prepare", "localizer")))
    project.stage("saliency")

    def bench(name: str, on, at_end: ExitStack) -> Bench:
        return Bench(home if name == "orphaned" else sibling(home, name), on, at_end)

    def one(event: Callable[[Bench], None]) -> set[str]:
        with ExitStack() as at_end:
            hurt = bench(event.__name__, cluster, at_end)
            event(hurt)
            return {tidy(hurt)}

    def two(event: Callable[[Bench, Bench], None]) -> set[str]:
        with own_cluster() as broken, ExitStack() as at_end:
            both = [bench(name, broken, at_end) for name in ("lost", "unseen")]
            event(*both)
            return {tidy(hurt) for hurt in both}

    with ThreadPoolExecutor(8) as pool:
        found = {"time_up": pool.submit(one, time_up)}
        begun = home.with_name("time_up") / "starts"  # undisturbed: a warning comes in time
        until(lambda: begun.exists() or found["time_up"].done(), LIMIT)
        found["failing_nodes"] = pool.submit(two, failing_nodes)
        yield found | {event.__name__: pool.submit(one, event) for event in ALONE}


ALONE = [calm, killed, torn, orphaned, disk_full]


def sibling(home: Path, name: str) -> Path:
    """A folder beside the project, with the same code and data but results of its own."""
    folder = home.with_name(name)
    (folder / "artifacts").mkdir(parents=True)
    for place in (Path(), Path("artifacts")):
        for path in (home / place).iterdir():
            if not (folder / place / path.name).exists() and path.name not in (".git", "runs"):
                (folder / place / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    "event", ["killed", "torn", "orphaned", "time_up", "disk_full", "failing_nodes"]
)
def test_whatever_happens_to_a_job_its_result_is_the_same(endings, event):
    assert endings[event].result() == endings["calm"].result()
