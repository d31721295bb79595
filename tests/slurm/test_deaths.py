"""Jobs that die: what their launcher says, and that the next one goes on to the same bytes."""

import copy
import os
import re
import signal
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from salmask.provenance import tree_digest
from slurm import scheduler
from tests.helpers.desk import Desk, finished, until
from tests.helpers.project import TINY, Project

pytestmark = pytest.mark.slurm

SOON = 60.0  # seconds from a job's death to its report


@pytest.fixture
def desk(tmp_path, cluster):
    return Desk(tmp_path, str(cluster.conf))


@pytest.fixture(scope="module", params=["without accounting", "with accounting"])
def deaths(request, tmp_path_factory, cluster, own_cluster):
    """What launchers of doomed jobs said, all at the same time: name -> text."""
    if request.param == "without accounting":
        return doomed(tmp_path_factory, cluster)
    with own_cluster("--accounting") as accounting:
        said = doomed(tmp_path_factory, accounting)
        (job,) = re.findall(r"submitted as job (\d+)", said["mistake"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(accounting.conf))
            until(lambda: scheduler._from_accounting(job))  # which hears of it later
            (told,) = scheduler._from_accounting(job)
        assert (told.state, told.exit) == ("FAILED", "2:0")
        return said


def doomed(tmp_path_factory, cluster) -> dict[str, str]:
    def end_of(launcher: subprocess.Popen[str]) -> tuple[str, float]:
        return finished(launcher, 1, 240), time.time()

    with ThreadPoolExecutor(16) as pool:
        ends: dict[str, Future[tuple[str, float]]] = {}

        def start(name: str, *options: str, **profile: object) -> Desk:
            made = Desk(tmp_path_factory.mktemp(name), str(cluster.conf))
            made.profile(**profile)
            ends[name] = pool.submit(end_of, made.toy(name, *options))
            return made

        start("raises", "--trouble", "raises")
        start("mistake", "--trouble", "mistake")
        start("nowhere", partition="nowhere")
        start("setup", setup=["echo loading", "module-that-is-not load cuda"])
        start("eats", "--trouble", "eats at once", mem_gb=1)
        start("second", "--ticks", "600", "--stage", "pretrain", nodes=2)
        cancelled = start("cancelled", "--ticks", "600")
        until(lambda: list(cancelled.folder.glob("runs/*")) and cancelled.count("cancelled") > 3)
        cluster.run("scancel", cancelled.job("cancelled"))
        told = {name: end.result() for name, end in ends.items()}
    for name, (said, when) in told.items():
        for job in re.findall(r"submitted as job (\d+)", said):
            ended = cluster.run("date", "--date", cluster.job(job)["EndTime"], "+%s")
            assert when - float(ended) < SOON, (name, said)
    return {name: said for name, (said, _) in told.items()}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("raises", ["ended as FAILED", "exit code 1", "on n", "ValueError: the toy is broken"]),
        ("mistake", ["ended as FAILED", "exit code 2", "error: the toy is not for this"]),
        ("nowhere", ["sbatch refused", "nvalid partition"]),
        ("setup", ["ended as FAILED", "setup failed with exit code 127: module-that-is-not"]),
        ("eats", ["exceeded memory limit"]),
        ("second", ["ended as FAILED", "another task's", "ValueError: the second task is broken"]),
        ("cancelled", ["ended as CANCELLED", "stopped: asked to stop"]),
    ],
)
def test_a_job_that_dies_is_reported(deaths, name, parts):
    said = deaths[name]
    report = said[said.index("Error: ") :]
    for part in parts:
        assert part in report, report
    if name != "nowhere":
        assert re.search(r"all of it: .*/jobs/\d+_0_log.out", report)
    if name not in ("raises", "second"):
        assert "Traceback" not in said


def test_a_killed_task_is_reported_and_the_next_job_goes_on(desk):
    first = desk.toy("killed", "--ticks", "40")
    until(lambda: list(desk.folder.glob("runs/*")) and desk.count("killed") > 10)
    os.kill(desk.task("killed"), signal.SIGKILL)
    killed_at = time.monotonic()
    assert "exit code 137" in finished(first, 1)
    assert time.monotonic() - killed_at < SOON
    finished(desk.toy("killed", "--ticks", "40"))
    start, again = desk.starts("killed")
    assert start == 0 and again > 10


@pytest.mark.parametrize("how", [["scontrol", "requeue"], ["scancel", "--signal=USR2"]], ids=str)
def test_a_requeued_job_goes_on_by_itself(desk, cluster, how):
    waiting = desk.toy("back", "--ticks", "50")
    until(lambda: list(desk.folder.glob("runs/*")) and desk.count("back") > 10)
    job = desk.job("back")
    cluster.run(*how, job)
    assert "is pending (BeginTime)" in finished(waiting)
    assert desk.job("back") == job and cluster.job(job)["Restarts"] == "1"
    start, again = desk.starts("back")
    assert start == 0 and again > 10


def test_another_task_puts_the_job_back_where_the_first_hears_nothing(desk, cluster):
    desk.profile(tasks_per_node=2)
    waiting = desk.toy("deaf", "--trouble", "deaf", "--stage", "pretrain")
    until(lambda: list(desk.folder.glob("runs/*/*/starts")))
    job = desk.job("deaf")
    cluster.run("scancel", "--signal=USR2", job)
    assert "is pending (BeginTime)" in finished(waiting)
    assert desk.job("deaf") == job and cluster.job(job)["Restarts"] == "1"
    assert "putting this job back" in (desk.run("deaf") / "jobs" / f"{job}_1_log.out").read_text()
    assert (desk.folder / "published/deaf/starts.txt").read_text() == "deaf\n0\n"


def test_a_job_without_memory_is_followed_by_another_that_goes_on(desk):
    said = finished(desk.toy("grown", "--trouble", "eats"))
    first, second = re.findall(r"submitted as job (\d+)", said)
    assert "exceeded memory limit" in said and f"job {first} (toy-grown-" in said
    assert "it got further, so another goes on" in said and desk.job("grown") == second
    assert desk.starts("grown") == [0, 5]


def test_a_job_is_put_back_only_so_often(desk, cluster):
    desk.profile(max_requeues=0)
    waiting = desk.toy("often", "--ticks", "100")
    until(lambda: list(desk.folder.glob("runs/*")) and desk.count("often") > 2)
    cluster.run("scancel", "--signal=USR2", desk.job("often"))
    assert "not put back (max_requeues)" in finished(waiting, 1)


def test_pretraining_on_two_nodes_ends_in_the_same_bytes_however_it_is_interrupted(
    tmp_path: Path, cluster
):
    params = copy.deepcopy(TINY)
    params["train"] |= {"epochs": 10, "images": "stream"}
    params["runs"] = {"blur": {"mask": {"name": "blur"}}}
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", params)
    desk = Desk(project.folder, str(cluster.conf))
    desk.profile(nodes=2, checkpoint_minutes=0.0001)
    for stage in ("prepare", "localizer", "saliency"):
        project.stage(stage)

    def start(runs: str):
        place = {"SALMASK_RUNS": str(tmp_path / runs), "PYTHONPATH": ""}
        return desk.start("-m", "stages.pretrain", "--run", "blur", **place)

    def steps(runs: str) -> list[str]:
        return sorted(p.stem for p in (tmp_path / runs).rglob("step-*.pt"))

    out = project.folder / "artifacts" / "pretrain" / "blur"
    calm = finished(start("calm"))
    wanted = tree_digest(out)
    assert "is running on n[1-2]" in calm or "finished; publishing" in calm

    disturbed = start("disturbed")
    until(lambda: steps("disturbed")[-1:] >= ["step-000000005"])
    (job,) = cluster.run("squeue", "--noheader", "--format=%i").split()
    assert cluster.job(job)["NumTasks"] == "2"
    cluster.run("scancel", "--signal=USR2", job)
    finished(disturbed)
    assert cluster.job(job)["Restarts"] == "1"
    assert tree_digest(out) == wanted
