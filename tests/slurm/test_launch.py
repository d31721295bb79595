"""Launching through Slurm: one job for one result, whoever asks for it and however often."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.desk import Desk, finished, until

pytestmark = pytest.mark.slurm


@pytest.fixture
def desk(tmp_path, cluster):
    return Desk(tmp_path, str(cluster.conf))


def jobs_of(desk: Desk, name: str) -> list[str]:
    """Every job that was ever given this run."""
    return sorted(p.name for p in (desk.run(name) / "jobs").glob("*_submission.sh"))


def test_a_job_does_the_work_and_its_files_are_published(desk, cluster):
    said = finished(desk.toy("plain"))
    assert "counts from 0" in said and "submitit" not in said
    assert (desk.folder / "published" / "plain" / "count.txt").read_text() == "10\n"
    told = cluster.job(desk.job("plain"))
    assert told["Comment"] == "salmask-" + desk.run("plain").name.rpartition("-")[2]
    assert told["JobName"] == desk.run("plain").name
    assert (told["NumTasks"], told["TimeLimit"]) == ("1", "00:05:00")
    assert not (desk.run("plain") / "work").exists()

    (desk.folder / "published" / "plain" / "count.txt").unlink()
    assert "finished earlier" in finished(desk.toy("plain"))
    assert (desk.folder / "published" / "plain" / "count.txt").exists()
    assert len(jobs_of(desk, "plain")) == 1
    assert re.search(r"toy-plain-\w+ +done", desk.ask("status"))
    assert "counts from 0" in desk.ask("logs", "plain")


def test_a_launcher_that_was_killed_attaches_again(desk):
    first = desk.toy("again", "--ticks", "80")
    until(lambda: desk.count("again") > 5)
    job = desk.job("again")
    os.killpg(first.pid, signal.SIGKILL)
    before = first.communicate()[0]
    (desk.run("again") / "job.json").unlink()  # as if it had died before noting the job
    after = finished(desk.toy("again", "--ticks", "80"))
    assert f"job {job} is at it already" in after
    assert (before + after).count("counts from 0") == 1  # the log goes on where it was
    assert desk.job("again") == job and len(jobs_of(desk, "again")) == 1
    assert desk.starts("again") == [0]


def test_two_launchers_at_once_give_one_job(desk):
    both = [desk.toy("twin", "--ticks", "30") for _ in range(2)]
    said = [finished(process) for process in both]
    assert sum("submitted as job" in text for text in said) == 1
    assert len(jobs_of(desk, "twin")) == 1
    assert desk.starts("twin") == [0]


def test_ctrl_c_leaves_the_job_and_cancel_stops_it(desk, cluster):
    waiting = desk.toy("left", "--ticks", "300")
    until(lambda: desk.count("left") > 2)
    waiting.send_signal(signal.SIGINT)
    said, job = finished(waiting, 130), desk.job("left")
    assert f"job {job} keeps running" in said and "python -m slurm cancel" in said
    assert cluster.job(job)["JobState"] == "RUNNING"
    assert re.search(rf"toy-left-\w+ +running +{job} +n[12]", desk.ask("status"))
    assert f"job {job}" in desk.ask("cancel", "left")
    cluster.wait(job, "CANCELLED")
    assert "no job is queued or runs" in desk.ask("cancel", "--all")


def test_a_job_refuses_what_changed_since_it_was_submitted(desk, cluster):
    (desk.folder / "input").write_text("old")
    desk.profile(additional={"hold": True})
    waiting = desk.toy("stale", "--input", "input")
    until(lambda: list(desk.folder.glob("runs/*")) and desk.job("stale"))
    (desk.folder / "input").write_text("new")
    cluster.run("scontrol", "release", desk.job("stale"))
    assert "input changed since this job was submitted" in finished(waiting, 1)


def test_without_waiting_jobs_are_submitted_and_collected_later(desk):
    toy = str(Path(__file__).parents[1] / "helpers" / "toy.py")
    for name in ("one", "two"):
        finished(desk.start(toy, "--name", name, SALMASK_SUBMIT_ONLY="1"))
        assert not (desk.folder / "published" / name).exists()
    jobs = [desk.job(name) for name in ("one", "two")]
    for name in ("one", "two"):
        finished(desk.toy(name))
        assert (desk.folder / "published" / name / "count.txt").exists()
    assert [desk.job(name) for name in ("one", "two")] == jobs
