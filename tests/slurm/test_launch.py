"""Launching through Slurm: one job for each result, however many launchers there are."""

import os
import re
import signal

import pytest

from tests.helpers.workspace import Workspace, output_of, read_until, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def workspace(tmp_path, cluster):
    return Workspace(tmp_path, str(cluster.conf))


def submissions(workspace: Workspace, name: str) -> list[str]:
    """The scripts of all jobs that were submitted for a run."""
    return sorted(p.name for p in workspace.run_folder(name).glob("jobs/*_submission.sh"))


def test_a_job_does_the_work_and_its_files_are_published(workspace, cluster):
    # Variables that users set in their shells, and that change what sbatch and squeue do.
    habits = {"SBATCH_EXPORT": "NONE", "SQUEUE_STATES": "FAILED", "SQUEUE_FORMAT": "%i"}
    output = output_of(workspace.start_counting("plain", **habits))
    assert "counts from 0" in output and "submitit" not in output
    published, run = workspace.folder / "published" / "plain", workspace.run_folder("plain")
    assert (published / "count.txt").read_text() == "10\n"
    job = cluster.job(workspace.job_id("plain"))
    assert job["Comment"] == "salmask-" + run.name.rpartition("-")[2]
    assert job["JobName"] == run.name
    assert (job["NumTasks"], job["TimeLimit"]) == ("1", "00:05:00")
    assert not (run / "work").exists()
    # The job imports `stages` and `slurm` from the project, wherever salmask is installed.
    paths = (published / "python_path.txt").read_text().split(os.pathsep)
    assert paths[0] == str(workspace.folder)

    (published / "count.txt").unlink()
    assert "finished earlier" in output_of(workspace.start_counting("plain"))
    assert (published / "count.txt").exists()
    assert len(submissions(workspace, "plain")) == 1
    assert re.search(r"counting-plain-\w+ +done", workspace.slurm_command("status"))
    assert "counts from 0" in workspace.slurm_command("logs", "plain")


def test_a_new_launcher_attaches_to_the_job_of_a_killed_one(workspace):
    first = workspace.start_counting("again", "--steps", "600")
    wait_until(lambda: workspace.counted("again") > 5)
    job = workspace.job_id("again")
    os.killpg(first.pid, signal.SIGKILL)
    before = first.communicate()[0]
    # As if the launcher had been killed between sbatch and writing job.json.
    (workspace.run_folder("again") / "job.json").unlink()
    second = workspace.start_counting("again", "--steps", "600")
    after = read_until(second, f"attached to job {job}")
    workspace.finish_counting()
    after += output_of(second)
    assert (before + after).count("counts from 0") == 1  # the log continues where it stopped
    assert workspace.job_id("again") == job and len(submissions(workspace, "again")) == 1
    assert workspace.start_counts("again") == [0]


def test_two_launchers_at_the_same_time_submit_one_job(workspace):
    launchers = [workspace.start_counting("twin", "--steps", "600") for _ in range(2)]
    outputs = [read_until(launcher, " job ") for launcher in launchers]
    workspace.finish_counting()
    for launcher in launchers:
        output_of(launcher)
    assert sum("submitted as job" in output for output in outputs) == 1
    assert len(submissions(workspace, "twin")) == 1
    assert workspace.start_counts("twin") == [0]


def test_ctrl_c_leaves_the_job_running_and_cancel_stops_it(workspace, cluster):
    launcher = workspace.start_counting("left", "--steps", "300")
    wait_until(lambda: workspace.counted("left") > 2)
    launcher.send_signal(signal.SIGINT)
    output, job = output_of(launcher, 130), workspace.job_id("left")
    assert f"job {job} keeps running" in output and "python -m slurm cancel" in output
    assert cluster.job(job)["JobState"] == "RUNNING"
    status = workspace.slurm_command("status")
    assert re.search(rf"counting-left-\w+ +running +{job} +n[12]", status)
    assert f"job {job}" in workspace.slurm_command("cancel", "left")
    cluster.wait(job, "CANCELLED")
    assert "no job waits or runs" in workspace.slurm_command("cancel", "--all")


def test_a_job_refuses_inputs_that_changed_since_it_was_submitted(workspace, cluster):
    (workspace.folder / "input").write_text("old")
    workspace.write_profile(additional={"hold": True})
    launcher = workspace.start_counting("stale", "--input", "input")
    wait_until(lambda: list(workspace.folder.glob("runs/*")) and workspace.job_id("stale"))
    (workspace.folder / "input").write_text("new")
    cluster.run("scontrol", "release", workspace.job_id("stale"))
    assert "input changed since this job was submitted" in output_of(launcher, 1)


def test_jobs_can_be_submitted_now_and_collected_later(workspace):
    names = ("one", "two")
    launchers = [workspace.start_counting(name, SALMASK_SUBMIT_ONLY="1") for name in names]
    for launcher in launchers:
        output_of(launcher)
    assert not (workspace.folder / "published").exists()
    jobs = [workspace.job_id(name) for name in names]
    for launcher in [workspace.start_counting(name) for name in names]:
        output_of(launcher)
    for name in names:
        assert (workspace.folder / "published" / name / "count.txt").exists()
    assert [workspace.job_id(name) for name in names] == jobs
