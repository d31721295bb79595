"""Job arrays: every piece is done once, on all nodes, and one job completes the result."""

import os
import re
import signal

import pytest

from tests.helpers.counting_stage import PIECES
from tests.helpers.workspace import Workspace, output_of, read_until, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def workspace(tmp_path, cluster):
    folder = Workspace(tmp_path, str(cluster.conf))
    folder.write_profile(nodes=2, tasks_per_node=2)
    return folder


def pieces(workspace: Workspace, name: str) -> list[str]:
    return (workspace.folder / "published" / name / "pieces.txt").read_text().splitlines()


def has_ended(cluster, job: str) -> bool:
    return job not in cluster.run("squeue", "--noheader", "--format=%F").split()


@pytest.fixture(scope="module")
def arrays(tmp_path_factory, cluster):
    """Workspaces in which an array ran, and their launchers' outputs. All run at the same time."""
    started = {}
    for name, code, tasks, options in (
        ("shared", 0, 2, []),
        ("broken", 1, 1, ["--fault", "share exception"]),
        ("late", 0, 1, ["--fault", "late files"]),
    ):
        workspace = Workspace(tmp_path_factory.mktemp(name), str(cluster.conf))
        workspace.write_profile(nodes=2, tasks_per_node=tasks)
        launcher = workspace.start_counting(name, "--array", *options)
        started[name] = workspace, launcher, code
    return {
        name: (workspace, output_of(launcher, code))
        for name, (workspace, launcher, code) in started.items()
    }


def test_an_array_shares_the_pieces_and_its_last_job_completes_the_result(arrays):
    workspace, output = arrays["shared"]
    assert re.search(r"submitted as job \d+, 4 tasks, to test", output)
    assert re.search(r"is running on n1,n2$", output, re.MULTILINE)
    made = [line.split() for line in pieces(workspace, "shared")]
    assert [(int(name[6:]), int(index)) for name, _, index, _, _ in made] == [
        (piece, piece % 4) for piece in range(PIECES)
    ]
    assert {node for *_, node in made} == {"n1", "n2"}
    for piece in range(PIECES):
        assert f"{piece % 4}: piece {piece} of {PIECES}" in output
    assert output.count("counts from 0") == 1
    assert workspace.start_counts("shared") == [0]
    assert workspace.slurm_command("logs", "shared").count(" of 7\n") == PIECES
    assert not (workspace.run_folder("shared") / "work").exists()


def test_a_profile_with_one_task_submits_no_array(workspace):
    workspace.write_profile(nodes=1, tasks_per_node=1)
    output = output_of(workspace.start_counting("alone", "--array"))
    assert re.search(r"submitted as job \d+ to test", output)
    assert pieces(workspace, "alone") == []  # `work` does everything that `fill` has not done


def test_a_share_that_fails_ends_the_array_and_the_next_one_continues(arrays, cluster):
    workspace, output = arrays["broken"]
    job = workspace.job_id("broken")
    assert re.search(rf"job {job}_1 \(counting-broken-\w+\) ended as FAILED, exit code 1", output)
    assert "    ValueError: the second share is broken" in output
    wait_until(lambda: has_ended(cluster, job))
    output_of(workspace.start_counting("broken", "--array", "--fault", "share exception"))
    assert len(pieces(workspace, "broken")) == PIECES and workspace.start_counts("broken") == [0]


def test_another_job_completes_the_result_when_files_appear_late(arrays):
    workspace, output = arrays["late"]
    assert "all shares are done; submitting a job to complete the result" in output
    assert output.count("submitted as job") == 2
    assert len(pieces(workspace, "late")) == PIECES and workspace.start_counts("late") == [0]


def test_a_launcher_attaches_to_an_array_of_which_a_job_was_requeued(workspace, cluster):
    first = workspace.start_counting("back", "--array", "--steps", "80")
    wait_until(lambda: list(workspace.folder.glob("runs/*back-*/jobs/*_1_0_log.out")))
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    job = workspace.job_id("back")
    status = workspace.slurm_command("status")
    assert re.search(rf"counting-back-\w+ +running +{job} +n1,n2", status)
    second = workspace.start_counting("back", "--array", "--steps", "80")
    # Share 1 continues with piece 5.
    wait_until(lambda: (workspace.run_folder("back") / "work" / "piece-1").exists())
    cluster.run("scancel", "--signal=USR2", f"{job}_1")
    output = output_of(second)
    assert f"attached to job {job}" in output
    assert "1: putting this job back into the queue" in output
    assert len(pieces(workspace, "back")) == PIECES and workspace.start_counts("back") == [0]


def test_cancel_stops_all_jobs_of_an_array(workspace, cluster):
    launcher = workspace.start_counting("stopped", "--array", "--steps", "600")
    read_until(launcher, " is running on n1,n2")
    workspace.slurm_command("cancel", "stopped")
    assert "ended as CANCELLED" in output_of(launcher, 1)
    wait_until(lambda: has_ended(cluster, workspace.job_id("stopped")))
