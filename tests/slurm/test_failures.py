"""Jobs that fail or are requeued: what the launcher reports, and that the next job continues."""

import copy
import os
import re
import signal
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from salmask.files import tree_digest
from slurm import scheduler
from tests.helpers.project import TINY
from tests.helpers.workspace import Workspace, output_of, wait_until

pytestmark = pytest.mark.slurm

REPORT_SECONDS = 60.0  # the maximum time between the end of a job and its report


@pytest.fixture
def workspace(tmp_path, cluster):
    return Workspace(tmp_path, str(cluster.conf))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, cluster):
    """The output of a launcher for each kind of failure, by name."""
    return run_failing_jobs(tmp_path_factory, cluster)


def run_failing_jobs(tmp_path_factory, cluster) -> dict[str, str]:
    """Launches one job for each kind of failure, all at the same time."""

    def wait_for_end(launcher: subprocess.Popen[str]) -> tuple[str, float]:
        return output_of(launcher, 1, 240), time.time()

    with ThreadPoolExecutor(16) as pool:
        ends: dict[str, Future[tuple[str, float]]] = {}

        def start(name: str, *options: str, **profile: object) -> Workspace:
            workspace = Workspace(tmp_path_factory.mktemp(name), str(cluster.conf))
            workspace.write_profile(**profile)
            ends[name] = pool.submit(wait_for_end, workspace.start_counting(name, *options))
            return workspace

        start("exception", "--fault", "exception")
        start("user_error", "--fault", "user error")
        start("partition", partition="nowhere")
        start("setup", setup=["echo loading", "module-that-is-not load cuda"])
        start("memory", "--fault", "memory at start", mem_gb=1)
        start("second", "--steps", "600", "--parallel", nodes=2)
        cancelled = start("cancelled", "--steps", "600")
        wait_until(lambda: cancelled.counted("cancelled") > 3)
        cluster.run("scancel", cancelled.job_id("cancelled"))
        results = {name: end.result() for name, end in ends.items()}
    for name, (output, time_of_report) in results.items():
        for job in re.findall(r"submitted as job (\d+)", output):
            end = cluster.run("date", "--date", cluster.job(job)["EndTime"], "+%s")
            assert time_of_report - float(end) < REPORT_SECONDS, (name, output)
    return {name: output for name, (output, _) in results.items()}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("exception", ["ended as FAILED", "exit code 1", "on n",
                       "ValueError: the counting stage is broken"]),
        ("user_error", ["ended as FAILED", "exit code 2",
                        "error: the counting stage has wrong options"]),
        ("partition", ["sbatch refused", "nvalid partition"]),
        ("setup", ["ended as FAILED", "setup failed with exit code 127: module-that-is-not"]),
        ("memory", ["exceeded memory limit"]),
        ("second", ["ended as FAILED", "another task's log",
                    "ValueError: the second task is broken"]),
        ("cancelled", ["ended as CANCELLED", "stopped: received a stop signal"]),
    ],
)  # fmt: skip
def test_a_failed_job_is_reported(outputs, name, parts):
    output = outputs[name]
    report = output[output.index("Error: ") :]
    for part in parts:
        assert part in report, report
    if name != "partition":
        assert re.search(r"the whole log: .*/jobs/\d+_0_log.out", report)
    if name not in ("exception", "second"):
        assert "Traceback" not in output


def test_failures_are_reported_with_accounting_too(tmp_path, accounting, monkeypatch):
    workspace = Workspace(tmp_path, str(accounting.conf))
    output = output_of(workspace.start_counting("wrong", "--fault", "user error"), 1)
    assert "ended as FAILED, exit code 2" in output
    (job,) = re.findall(r"submitted as job (\d+)", output)
    monkeypatch.setenv("SLURM_CONF", str(accounting.conf))
    wait_until(lambda: scheduler._accounting_statuses(job))  # the database is updated later
    (status,) = scheduler._accounting_statuses(job)
    assert (status.state, status.exit) == ("FAILED", "2:0")


def test_a_killed_task_is_reported_and_the_next_job_continues(workspace):
    first = workspace.start_counting("killed", "--steps", "600")
    wait_until(lambda: workspace.counted("killed") > 5)
    os.kill(workspace.first_task_pid("killed"), signal.SIGKILL)
    killed_at = time.monotonic()
    assert "exit code 137" in output_of(first, 1)
    assert time.monotonic() - killed_at < REPORT_SECONDS
    workspace.finish_counting()
    output_of(workspace.start_counting("killed", "--steps", "600"))
    start, again = workspace.start_counts("killed")
    assert start == 0 and again > 5


@pytest.fixture(scope="module")
def requeued(tmp_path_factory, cluster):
    """Jobs that were requeued in different ways, all at the same time.

    Yields, by name: the workspace, the job's id and the launcher's output.
    """
    workspaces, launchers = {}, {}
    for name, options, profile in (
        ("requeue", ["--steps", "600"], {}),
        ("signal", ["--steps", "600"], {}),
        ("blocked", ["--fault", "blocked", "--parallel"], {"tasks_per_node": 2}),
    ):
        workspaces[name] = Workspace(tmp_path_factory.mktemp(name), str(cluster.conf))
        workspaces[name].write_profile(**profile)
        launchers[name] = workspaces[name].start_counting(name, *options)
    jobs = {}
    for name, workspace in workspaces.items():
        if name == "blocked":
            wait_until(lambda folder=workspace.folder: list(folder.glob("runs/*/*/starts")))
        else:
            wait_until(lambda name=name, w=workspace: w.counted(name) > 5)
        jobs[name] = workspace.job_id(name)
        how = ["scontrol", "requeue"] if name == "requeue" else ["scancel", "--signal=USR2"]
        cluster.run(*how, jobs[name])
    for name, workspace in workspaces.items():
        cluster.wait(jobs[name], "PENDING", seconds=60)
        workspace.finish_counting()
    return {
        name: (workspaces[name], jobs[name], output_of(launcher))
        for name, launcher in launchers.items()
    }


@pytest.mark.parametrize("name", ["requeue", "signal", "blocked"])
def test_a_requeued_job_continues_by_itself(requeued, cluster, name):
    workspace, job, output = requeued[name]
    assert "is pending (BeginTime)" in output
    assert workspace.job_id(name) == job and cluster.job(job)["Restarts"] == "1"
    if name != "blocked":
        start, again = workspace.start_counts(name)
        assert start == 0 and again > 5


def test_another_task_requeues_the_job_when_the_first_one_is_blocked(requeued):
    workspace, job, _ = requeued["blocked"]
    log = workspace.run_folder("blocked") / "jobs" / f"{job}_1_log.out"
    assert "putting this job back" in log.read_text()
    starts = workspace.folder / "published/blocked/starts.txt"
    assert starts.read_text() == "blocked\n0\n"


def test_a_job_that_ran_out_of_memory_is_submitted_again_if_it_made_progress(workspace):
    output = output_of(workspace.start_counting("grown", "--fault", "memory"))
    first, second = re.findall(r"submitted as job (\d+)", output)
    assert "exceeded memory limit" in output and f"job {first} (counting-grown-" in output
    assert "it made progress; submitting it again" in output
    assert workspace.job_id("grown") == second
    assert workspace.start_counts("grown") == [0, 5]


def test_max_requeues_limits_how_often_a_job_returns_to_the_queue(workspace, cluster):
    workspace.write_profile(max_requeues=0)
    launcher = workspace.start_counting("often", "--steps", "600")
    wait_until(lambda: workspace.counted("often") > 2)
    cluster.run("scancel", "--signal=USR2", workspace.job_id("often"))
    assert "not requeued (max_requeues)" in output_of(launcher, 1)


def test_pretraining_on_two_nodes_gives_the_same_bytes_after_an_interruption(
    tmp_path: Path, cluster, copy_prepared
):
    params = copy.deepcopy(TINY)
    params["train"] |= {"epochs": 10, "images": "stream"}
    params["runs"] = {"blur": {"mask": {"name": "blur"}}}
    project = copy_prepared(tmp_path / "project", params)
    workspace = Workspace(project.folder, str(cluster.conf))
    workspace.write_profile(nodes=2, checkpoint_minutes=0.0001)

    def start(runs: str):
        variables = {"SALMASK_RUNS": str(tmp_path / runs), "PYTHONPATH": ""}
        return workspace.start("-m", "stages.pretrain", "--run", "blur", **variables)

    def checkpoints(runs: str) -> list[str]:
        return sorted(p.stem for p in (tmp_path / runs).rglob("step-*.pt"))

    out = project.folder / "artifacts" / "pretrain" / "blur"
    output = output_of(start("undisturbed"))
    digest = tree_digest(out)
    assert "is running on n[1-2]" in output or "finished; publishing" in output

    launcher = start("interrupted")
    wait_until(lambda: checkpoints("interrupted")[-1:] >= ["step-000000005"])
    (job,) = cluster.run("squeue", "--noheader", "--format=%i").split()
    assert cluster.job(job)["NumTasks"] == "2"
    cluster.run("scancel", "--signal=USR2", job)
    output_of(launcher)
    assert cluster.job(job)["Restarts"] == "1"
    assert tree_digest(out) == digest
