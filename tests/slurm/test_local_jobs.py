"""Jobs on this machine: they outlive their launcher, and their failures are reported."""

import os
import re
import signal

import psutil
import pytest
import torch

from salmask.errors import UserError
from slurm import local_jobs, worker
from slurm.profile import Profile
from slurm.submission import _pickled, _visible_gpus
from tests.helpers.workspace import (
    Workspace,
    leftovers,
    output_of,
    read_until,
    wait_until,
)


@pytest.fixture
def workspace(tmp_path):
    folder = Workspace(tmp_path, "none")
    folder.write_profile(executor="local-jobs", partition=None)
    return folder


def test_a_job_outlives_its_launcher_and_the_next_one_attaches(tmp_path):
    folder = tmp_path / "a project's folder"
    folder.mkdir()
    workspace = Workspace(folder, "none")
    workspace.write_profile(executor="local-jobs", partition=None)
    first = workspace.start_counting("left", "--steps", "600")
    wait_until(lambda: workspace.counted("left") > 2)
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    output = output_of(first, 130)
    job = workspace.job_id("left")
    assert re.search(r"counting-left-\w+: submitted as job \d+ to this machine", output)
    assert f"job {job} keeps running" in output
    assert re.search(rf"counting-left-\w+ +running +{job} ", workspace.slurm_command("status"))
    second = workspace.start_counting("left", "--steps", "600")
    read_until(second, f"attached to job {job}")
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    third = workspace.start_counting("left", "--steps", "600")
    read_until(third, f"attached to job {job}")
    workspace.finish_counting()
    assert "finished; publishing" in output_of(third)
    assert workspace.start_counts("left") == [0]
    paths = workspace.folder / "published" / "left" / "python_path.txt"
    assert paths.read_text().split(os.pathsep)[0] == str(workspace.folder)
    wait_until(lambda: not local_jobs.active_jobs(workspace.run_folder("left").name))


def test_cancel_stops_a_job_and_the_next_one_continues(workspace):
    setup = ["export ANY=1", "cd /"]  # a shell runs these lines, then the controller
    workspace.write_profile(executor="local-jobs", partition=None, setup=setup)
    launcher = workspace.start_counting("stopped", "--steps", "600")
    wait_until(lambda: workspace.counted("stopped") > 5)
    job, run = workspace.job_id("stopped"), workspace.run_folder("stopped")
    assert list(local_jobs.active_jobs(run.name)) == [job]
    assert "cancelled job" in workspace.slurm_command("cancel", "stopped")
    output = output_of(launcher, 1)
    assert "disappeared (last state: RUNNING)" in output
    assert "stopped: received a stop signal" in output
    assert "no job waits or runs" in workspace.slurm_command("cancel", "--all")
    workspace.finish_counting()
    output_of(workspace.start_counting("stopped", "--steps", "600"))
    start, again = workspace.start_counts("stopped")
    assert start == 0 and again > 5


def test_failures_are_reported(workspace):
    setup = ["echo no such module >&2; false"]
    workspace.write_profile(executor="local-jobs", partition=None, setup=setup)
    launchers = {"setup": workspace.start_counting("setup")}
    wait_until(lambda: list(workspace.folder.glob("runs/*setup-*/job.json")))
    workspace.write_profile(executor="local-jobs", partition=None, tasks_per_node=2)
    options = {
        "exception": ["--fault", "exception"],
        "killed": ["--fault", "killed"],
        "second": ["--steps", "300", "--parallel"],
        "second killed": ["--fault", "second killed", "--parallel"],
    }
    launchers |= {name: workspace.start_counting(name, *more) for name, more in options.items()}
    outputs = {name: output_of(launcher, 1) for name, launcher in launchers.items()}
    assert "no such module" in outputs["setup"]
    assert "ValueError: the counting stage is broken" in outputs["exception"]
    assert "disappeared (last state: RUNNING)" in outputs["killed"]
    assert "another task's log" in outputs["second"]
    assert "ValueError: the second task is broken" in outputs["second"]
    assert "stopped: another task of this job ended" in outputs["second killed"]
    wait_until(lambda: not leftovers(workspace.folder), 20)


def test_a_job_whose_controller_is_killed_ends(workspace):
    launcher = workspace.start_counting("left", "--steps", "600")
    wait_until(lambda: workspace.counted("left") > 2)
    shell = psutil.Process(int(workspace.job_id("left")))
    shell.children()[0].kill()
    assert "stopped: received a stop signal" in output_of(launcher, 1)
    wait_until(lambda: not leftovers(workspace.folder), 20)


def test_a_job_fails_when_torch_does_not_find_the_gpus_of_the_profile(monkeypatch):
    monkeypatch.setattr("salmask.devices.pick_device", lambda: torch.device("cpu"))
    monkeypatch.delenv("SALMASK_DEVICE", raising=False)
    with pytest.raises(UserError, match=r"\(gpus: 1\), but torch .* finds none"):
        worker._device(Profile("local-jobs", gpus=1))
    assert worker._device(Profile("local-jobs")).type == "cpu"
    monkeypatch.setenv("SALMASK_DEVICE", "cpu")
    assert worker._device(Profile("local-jobs", gpus=1)).type == "cpu"


def test_a_damaged_description_of_a_job_is_not_used(monkeypatch):
    def end(message: str, code: int) -> None:
        raise SystemExit(f"{message} ({code})")

    monkeypatch.setattr(worker, "_exit", end)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    content, sha256 = _pickled({"lr": 1.0})
    damaged = content.replace(b"lr", b"Lr")
    with pytest.raises(SystemExit, match=r"the file of this job is damaged.*\(2\)"):
        worker.main(damaged, sha256)


def test_cancel_ignores_runs_without_jobs(workspace):
    workspace.write_profile(executor="local", partition=None)
    output_of(workspace.start_counting("here"))
    assert "no job waits or runs" in workspace.slurm_command("cancel", "--all")


def test_a_runs_folder_that_cannot_be_created_is_named(workspace):
    (workspace.folder / "file").touch()
    launcher = workspace.start_counting("x", SALMASK_RUNS=str(workspace.folder / "file"))
    output = output_of(launcher, 2)
    assert "cannot be used" in output and "set SALMASK_RUNS" in output
    assert "Traceback" not in output


def test_a_runs_folder_without_write_permission_is_named(workspace):
    output = output_of(workspace.start_counting("x", SALMASK_RUNS="/sys/kernel/runs"), 2)
    assert "error: /sys/kernel/runs: " in output and "set SALMASK_RUNS" in output
    assert "Traceback" not in output


def test_a_signal_at_the_start_of_a_job_is_handled(workspace):
    """It arrives after a second, when a job of this profile still imports torch."""
    profile = {"executor": "local-jobs", "partition": None, "time_min": 1, "signal_seconds": 59}
    workspace.write_profile(**profile)
    output = output_of(workspace.start_counting("early", "--steps", "600"), 1)
    assert "stopped: received a stop signal" in output


def test_local_jobs_use_the_gpus_of_cuda_visible_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible_gpus(2) == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,7")
    assert _visible_gpus(2) == [3, 5]
    assert _visible_gpus(0) == []
    for devices in ("3", "GPU-1a2b,GPU-3c4d"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        with pytest.raises(Exception, match=f"CUDA_VISIBLE_DEVICES={devices}: .* 2 GPUs"):
            _visible_gpus(2)
