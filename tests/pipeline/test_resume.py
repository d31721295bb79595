"""Killed stages resume and end in the same bytes as undisturbed ones."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from salmask.files import file_digest, tree_digest
from tests.helpers.project import TINY, Project
from tests.helpers.workspace import leftovers, wait_until

pytestmark = pytest.mark.pipeline

OFTEN = "executor: local\ncpus: 1\ncheckpoint_minutes: 0.0001\n"  # a checkpoint at every step


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Data, localizer and an undisturbed run of every mask, with one thread."""
    params = copy.deepcopy(TINY)
    params["train"]["epochs"] = 6
    params["runs"] = {
        "blur": {"mask": {"name": "blur"}},
        "high-pass": {"mask": {"name": "high_pass"}, "train": {"images": "stream"}},
    }
    params["evaluate"]["linear"] |= {"batch": 8, "images": "resident"}
    params["evaluate"]["finetune"] |= {"shares": [100], "images": "stream"}
    made = Project(tmp_path_factory.mktemp("resume"), params)
    (made.folder / "often.yaml").write_text(OFTEN)
    for stage in ("prepare", "localizer", "saliency"):
        made.stage(stage, SALMASK_CLUSTER="often.yaml")
    return made


def start(project: Project, stage: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=project.folder,
        env=project.environment(SALMASK_CLUSTER="often.yaml", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def checkpoints(runs: Path) -> list[str]:
    return sorted(p.name for p in runs.rglob("step-*.pt"))


def wait_for(condition, process: subprocess.Popen[str]) -> None:  # type: ignore[no-untyped-def]
    """Until the condition holds; fails when the process ends before."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def stop_and_resume(
    project: Project, runs: Path, stops: dict[int, signal.Signals], stage: str, *arguments: str
) -> None:
    """Sends each signal to a stage and its workers, as scancel does, when the newest checkpoint is
    of the signal's step or a later one. Then lets the stage finish."""
    for step, number in stops.items():
        process = start(project, stage, *arguments, SALMASK_RUNS=str(runs))
        wait_for(lambda least=step: reached(runs) >= least, process)
        os.killpg(process.pid, number)
        output = process.communicate()[0]
        if number == signal.SIGTERM:
            assert process.returncode == 143, output
            assert "run the same command again to continue" in output
            assert "Traceback" not in output
        else:
            assert process.returncode == -number
    assert checkpoints(runs)
    project.stage(stage, *arguments, SALMASK_RUNS=str(runs), SALMASK_CLUSTER="often.yaml")


@pytest.mark.parametrize("run", ["blur", "high-pass"])  # without and with decoding workers
def test_a_stopped_pretraining_ends_in_the_same_bytes(
    project: Project, tmp_path: Path, run: str
) -> None:
    env = {"SALMASK_CLUSTER": "often.yaml"}
    out = project.folder / "artifacts/pretrain" / run
    project.stage("pretrain", "--run", run, SALMASK_RUNS=str(tmp_path / "undisturbed"), **env)
    undisturbed = tree_digest(out)
    stops = {2: signal.SIGTERM, 11: signal.SIGKILL}  # in the first epoch and in the fourth
    stop_and_resume(project, tmp_path / "stopped", stops, "pretrain", "--run", run)
    assert tree_digest(out) == undisturbed


@pytest.mark.parametrize(
    ("protocol", "step"),  # of 24, 12 in each epoch
    [("linear", 3), ("finetune", 15)],
)
def test_a_killed_classifier_ends_in_the_same_bytes(
    project: Project, tmp_path: Path, protocol: str, step: int
) -> None:
    env = {"SALMASK_CLUSTER": "often.yaml"}
    project.stage("pretrain", "--run", "blur", **env)
    out = project.folder / "artifacts/evaluate/blur" / protocol
    command = ("evaluate", "--protocol", protocol, "--run", "blur")
    project.stage(*command, SALMASK_RUNS=str(tmp_path / "undisturbed"), **env)
    undisturbed = tree_digest(out)
    stop_and_resume(project, tmp_path / "killed", {step: signal.SIGKILL}, *command)
    assert tree_digest(out) == undisturbed


def reached(runs: Path) -> int:
    result = checkpoints(runs)
    return int(result[-1].removeprefix("step-").removesuffix(".pt")) if result else 0


def test_a_killed_saliency_stage_ends_in_the_same_bytes(project: Project, tmp_path: Path) -> None:
    out = project.folder / "artifacts/saliency"
    calm = tree_digest(out)
    process = start(project, "saliency", SALMASK_RUNS=str(tmp_path))
    wait_for(lambda: list(tmp_path.glob("saliency-*/*/shards/*.done")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = sorted(tmp_path.glob("saliency-*/*/shards/*.done"))
    assert 1 <= len(done) <= 3
    project.stage("saliency", SALMASK_RUNS=str(tmp_path), SALMASK_CLUSTER="often.yaml")
    assert tree_digest(out) == calm


# Runs a stage in which one function fails: `python -c FAILING module function error stage options`
FAILING = """
import importlib, runpy, sys
module, function, error, stage = sys.argv[1:5]
def fail(*_, **__):
    raise eval(error)
setattr(importlib.import_module(module), function, fail)
sys.argv = sys.argv[4:]
runpy.run_module(stage, run_name="__main__", alter_sys=True)
"""


def ended(process: subprocess.Popen[str], project: Project, code: int) -> str:
    """The output of a stage that is about to end, with its workers."""
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    wait_until(lambda: not leftovers(project.folder), 10)
    return output


def start_failing(
    project: Project, runs: Path, module: str, function: str, error: str, *stage: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FAILING, module, function, error, *stage],
        cwd=project.folder,
        env=project.environment(SALMASK_CLUSTER="often.yaml", SALMASK_RUNS=str(runs)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_full_disk_ends_saliency(project: Project, tmp_path: Path) -> None:
    out = project.folder / "artifacts/saliency"
    calm = tree_digest(out)
    full = "OSError(28, 'No space left on device')"
    failing = ("salmask.saliency.store", "write_shard", full, "stages.saliency")
    output = ended(start_failing(project, tmp_path, *failing), project, 1)
    assert "no space is left on the disk of" in output and "Traceback" not in output
    project.stage("saliency", SALMASK_RUNS=str(tmp_path), SALMASK_CLUSTER="often.yaml")
    assert tree_digest(out) == calm


def test_an_error_ends_a_fine_tuning_with_workers(project: Project, tmp_path: Path) -> None:
    project.stage("pretrain", "--run", "blur", SALMASK_CLUSTER="often.yaml")
    stage = ("stages.evaluate", "--protocol", "finetune", "--run", "blur")
    failing = ("salmask.evaluate.classifier", "all_reduce_mean", "ZeroDivisionError()", *stage)
    assert "ZeroDivisionError" in ended(start_failing(project, tmp_path, *failing), project, 1)


def test_a_pretraining_whose_worker_is_killed_ends_and_resumes(
    project: Project, tmp_path: Path
) -> None:
    env = {"SALMASK_CLUSTER": "often.yaml"}
    out = project.folder / "artifacts/pretrain/high-pass"
    project.stage("pretrain", "--run", "high-pass", SALMASK_RUNS=str(tmp_path / "calm"), **env)
    undisturbed = tree_digest(out)
    runs = tmp_path / "killed"
    process = start(project, "pretrain", "--run", "high-pass", SALMASK_RUNS=str(runs))
    wait_for(lambda: reached(runs) >= 2, process)
    worker = psutil.Process(process.pid).children()[0]
    process.send_signal(signal.SIGSTOP)  # so that it does not end first
    worker.kill()
    process.send_signal(signal.SIGCONT)
    output = ended(process, project, 1)
    assert "error: a process that decodes images was killed by signal 9" in output
    assert "Traceback" not in output
    project.stage("pretrain", "--run", "high-pass", SALMASK_RUNS=str(runs), **env)
    assert tree_digest(out) == undisturbed


def test_a_finished_run_is_only_published(project: Project, tmp_path: Path) -> None:
    env = {"SALMASK_CLUSTER": "often.yaml", "SALMASK_RUNS": str(tmp_path)}
    project.stage("pretrain", "--run", "blur", **env)
    encoder = project.folder / "artifacts/pretrain/blur/encoder.safetensors"
    before = file_digest(encoder)
    encoder.unlink()
    assert "finished earlier" in project.stage("pretrain", "--run", "blur", **env)
    assert file_digest(encoder) == before


def test_parameters_that_change_during_a_run_are_not_recorded_for_it(
    project: Project, tmp_path: Path
) -> None:
    file = project.folder / "params.yaml"
    before = file.read_text()
    out = project.folder / "artifacts/pretrain/blur"
    shutil.rmtree(out, ignore_errors=True)  # as DVC does before it runs a stage
    process = start(project, "pretrain", "--run", "blur", SALMASK_RUNS=str(tmp_path))
    wait_for(lambda: reached(tmp_path) >= 1, process)
    file.write_text(before.replace("lr: 0.002", "lr: 0.004"))
    output = process.communicate()[0]
    file.write_text(before)
    assert process.returncode == 2 and "train.lr changed while" in output, output
    assert not out.exists()
    again = project.stage("pretrain", "--run", "blur", SALMASK_RUNS=str(tmp_path))
    assert "finished earlier" in again and (out / "encoder.safetensors").is_file()


def test_two_processes_never_work_on_one_run(project: Project, tmp_path: Path) -> None:
    first = start(project, "pretrain", "--run", "high-pass", SALMASK_RUNS=str(tmp_path))
    wait_for(lambda: reached(tmp_path) >= 1, first)
    first.send_signal(signal.SIGSTOP)  # so that it still works when the second one starts
    second = start(project, "pretrain", "--run", "high-pass", SALMASK_RUNS=str(tmp_path))
    assert second.stdout is not None
    output = second.stdout.readline()
    first.send_signal(signal.SIGCONT)
    assert "another process works in" in output
    said_first, said_second = first.communicate()[0], second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0), said_first + said_second
    assert "finished earlier" in said_second


def test_new_images_are_read_and_computed_without_the_old_ones(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)

    def add(name: str) -> None:
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(photos / name)

    for i in range(0, 20, 2):
        add(f"{i:02d}.png")
    params = copy.deepcopy(TINY)
    params["data"] = {"name": "imagefolder", "root": str(photos)}
    params["saliency"]["shard_rows"] = 4
    (tmp_path / "project").mkdir()
    made = Project(tmp_path / "project", params)
    for stage in ("prepare", "localizer", "saliency"):
        made.stage(stage)
    add("07.png")  # between others, so that rows change
    (photos / "04.png").unlink()
    made.stage("prepare")
    assert "9 of 10 maps are copied from an earlier store" in made.stage("saliency")
    store = made.folder / "artifacts/saliency/saliency.zarr"
    grown = tree_digest(store)
    made.stage("saliency", SALMASK_RUNS=str(tmp_path / "elsewhere"))
    assert tree_digest(store) == grown
