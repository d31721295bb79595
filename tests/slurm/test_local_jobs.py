"""Jobs on this machine: apart from who waits for them, and reported when they die."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from salmask.errors import UserError
from slurm import machine, worker
from slurm.profile import Profile
from slurm.submission import _visible_gpus
from tests.helpers.desk import Desk, finished, until


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path, "none")
    made.profile(executor="local-jobs", partition=None)
    return made


def test_a_job_outlives_who_waits_for_it_and_is_found_again(desk):
    first = desk.toy("left", "--ticks", "200")
    until(lambda: desk.count("left") > 2)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to all that it started
    said = finished(first, 130)
    job = desk.job("left")
    assert re.search(r"toy-left-\w+: submitted as job \d+ to this machine", said)
    assert f"job {job} keeps running" in said
    assert re.search(rf"toy-left-\w+ +running +{job} ", desk.ask("status"))
    second = desk.toy("left", "--ticks", "200")
    until(lambda: (desk.run("left") / "launch.lock").exists())
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    again = finished(desk.toy("left", "--ticks", "200"))
    assert f"job {job} is at it already" in again
    assert "finished; publishing" in again
    assert desk.starts("left") == [0]
    until(lambda: not machine.live(desk.run("left").name))


def test_cancel_stops_it_and_the_next_one_goes_on(desk):
    desk.profile(executor="local-jobs", partition=None, setup=["export TOY=1", "true"])
    waiting = desk.toy("stopped", "--ticks", "200")
    until(lambda: desk.count("stopped") > 10)
    assert list(machine.live(desk.run("stopped").name)) == [desk.job("stopped")]  # shell and all
    assert "is cancelled" in desk.ask("cancel", "stopped")
    said = finished(waiting, 1)
    assert "was RUNNING and is gone" in said and "stopped: asked to stop" in said
    assert "no job is queued or runs" in desk.ask("cancel", "--all")
    finished(desk.toy("stopped", "--ticks", "200"))
    start, again = desk.starts("stopped")
    assert start == 0 and again > 10


def test_a_line_of_setup_that_fails_is_reported(desk):
    desk.profile(executor="local-jobs", partition=None, setup=["echo no such module >&2; false"])
    said = finished(desk.toy("unset"), 1)
    assert "no such module" in said, said


def test_deaths_are_reported(desk):
    desk.profile(executor="local-jobs", partition=None, tasks_per_node=2)
    said = {
        name: desk.toy(name, *options)
        for name, options in {
            "raises": ["--trouble", "raises"],
            "killed": ["--trouble", "killed"],
            "second": ["--ticks", "300", "--stage", "pretrain"],
        }.items()
    }
    said = {name: finished(process, 1) for name, process in said.items()}
    assert "ValueError: the toy is broken" in said["raises"]
    assert "was RUNNING and is gone" in said["killed"]
    assert "another task's" in said["second"]
    assert "ValueError: the second task is broken" in said["second"]


def test_a_gpu_that_torch_does_not_find_is_missed(desk, monkeypatch):
    monkeypatch.setattr(worker, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.delenv("SALMASK_DEVICE", raising=False)
    with pytest.raises(UserError, match=r"\(gpus: 1\) and torch .* finds none"):
        worker._device(Profile("local-jobs", gpus=1))
    assert worker._device(Profile("local-jobs")).type == "cpu"
    monkeypatch.setenv("SALMASK_DEVICE", "cpu")
    assert worker._device(Profile("local-jobs", gpus=1)).type == "cpu"


def test_cancel_passes_over_what_was_done_without_jobs(desk):
    desk.profile(executor="local", partition=None)
    finished(desk.toy("here"))
    assert "no job is queued or runs" in desk.ask("cancel", "--all")


def test_a_runs_folder_that_cannot_be_is_named(desk):
    (desk.folder / "file").touch()
    toy = str(Path(__file__).parents[1] / "helpers" / "toy.py")
    said = finished(desk.start(toy, "--name", "x", SALMASK_RUNS=str(desk.folder / "file")), 2)
    assert "cannot be used" in said and "set SALMASK_RUNS" in said and "Traceback" not in said


def test_gpus_are_those_that_the_caller_may_use(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible_gpus(2) == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,7")
    assert _visible_gpus(2) == [3, 5]
    assert _visible_gpus(0) == []
    for named in ("3", "GPU-1a2b,GPU-3c4d"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        with pytest.raises(Exception, match=f"CUDA_VISIBLE_DEVICES={named}: .* 2 GPUs"):
            _visible_gpus(2)
