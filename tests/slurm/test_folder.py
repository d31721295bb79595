"""The folder of a run: its lock, failed attempts, publishing, damaged records, errors of files."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from salmask.code_digests import code_digest
from salmask.errors import DataGoneError, InterruptedRunError, NonFiniteLossError, UserError
from salmask.files import write_json
from salmask.job import Job
from salmask.provenance import Recipe
from slurm import launch
from slurm.errors import DiskFullError, JobFailedError, named_folder_errors
from slurm.folder import (
    failures,
    is_done,
    is_locked,
    locked,
    publish_files,
    read_job_json,
    recorded_failure,
    run_label,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("wrong option"), "wrong option"),
        (NonFiniteLossError("not finite"), "not finite"),
        (JobFailedError("job 1 ended"), "job 1 ended"),
        (DataGoneError("the disk is gone"), "the disk is gone"),
        (ValueError("a bug"), "ValueError: a bug"),
    ],
)
def test_the_message_of_an_error_is_recorded(tmp_path, error, message):
    with pytest.raises(type(error)), recorded_failure(tmp_path):
        raise error
    with pytest.raises(RuntimeError), recorded_failure(tmp_path):  # of another task
        raise RuntimeError("the connection was closed by the first task")
    assert (tmp_path / "failure.txt").read_text() == f"{message}\n"


@pytest.mark.parametrize("error", [InterruptedRunError("stopped", 15), KeyboardInterrupt()])
def test_a_stop_signal_is_no_failure(tmp_path, error):
    with pytest.raises(type(error)), recorded_failure(tmp_path):
        raise error
    assert not list(tmp_path.iterdir())


def test_the_newest_failure_of_a_name_counts(tmp_path):
    for number, text in enumerate(("newer\nits log", "older")):
        folder = tmp_path / f"pretrain-a-b-00000000000{number}"
        folder.mkdir()
        (folder / "failure.txt").write_text(text)
        os.utime(folder / "failure.txt", (0, 100 - number))
    assert failures(tmp_path) == {"pretrain-a-b": "newer"}


def test_a_held_lock_is_visible_to_others(tmp_path):
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"has no file locks .* set SALMASK_RUNS"), locked(tmp_path):
        pytest.fail("there is no lock")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run/out/part").mkdir(parents=True)
    (tmp_path / "run/out/part/new").touch()
    (tmp_path / "artifacts/it").mkdir(parents=True)
    (tmp_path / "artifacts/it/old").touch()
    return tmp_path / "run"


def test_publishing_replaces_the_destination(run, tmp_path):
    (tmp_path / "artifacts/.it.partial/left").mkdir(parents=True)  # by a process that was killed
    (tmp_path / "artifacts/.it.old/left").mkdir(parents=True)
    publish_files(run, tmp_path / "artifacts/it")
    assert names(tmp_path / "artifacts") == ["it", "it/part", "it/part/new"]
    publish_files(run, tmp_path / "artifacts/another")
    assert names(tmp_path / "artifacts/another") == ["part", "part/new"]


def test_a_failure_to_copy_leaves_the_destination(run, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copy2", full)
    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
    with pytest.raises(DiskFullError), named_folder_errors(tmp_path):
        publish_files(run, tmp_path / "artifacts/it")
    assert (tmp_path / "artifacts/it/old").exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_missing_permissions_are_one_sentence(tmp_path, number):
    with pytest.raises(UserError) as caught, named_folder_errors(tmp_path):
        try:
            raise OSError(number, os.strerror(number), str(tmp_path / "lock"))
        finally:
            raise RuntimeError("torch's own error")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/lock: {os.strerror(number)}: ") and "SALMASK_RUNS" in text


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"7", b"[" * 20_000, b'{"provenance.json": 1}']
)
def test_damaged_records_are_no_records(tmp_path, content):
    (tmp_path / "out").mkdir()
    for name in ("DONE", "job.json", "out/provenance.json"):
        (tmp_path / name).write_bytes(content)
    assert not is_done(tmp_path)
    assert read_job_json(tmp_path) in ({}, {"provenance.json": 1})


@pytest.mark.parametrize(
    "damage", [{"executor": "x"}, {"executor": []}, {"executor": None}, {"job": 7}, {"job": "["}]
)
def test_a_job_that_no_executor_can_have_is_none(tmp_path, damage):
    job = {"job": "7", "executor": "local-jobs"}
    write_json(tmp_path / "job.json", job)
    assert read_job_json(tmp_path) == job
    write_json(tmp_path / "job.json", job | damage)
    assert read_job_json(tmp_path) == {}


SLOW_IMPORT = """
import os, signal
os.kill(os.getpid(), signal.SIGUSR2)  # during the imports
signal.signal(signal.SIGUSR2, lambda *_: print("handled", flush=True))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
import sys
print(__name__, sys.argv[1:])
"""


def test_a_signal_during_the_imports_of_a_task_is_held_back(tmp_path):
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-u", "-m", "slurm.task", "-u", "-m", "slow_import", "/a folder"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["handled", "__main__ ['/a folder']"], done.stderr


def test_a_finished_result_is_published_without_its_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SALMASK_CLUSTER", raising=False)
    monkeypatch.setenv("SALMASK_RUNS", str(tmp_path / "runs"))
    recipe = Recipe("stage", "name", (), code_digest((), tmp_path), {}, {})

    def publish() -> bytes:
        launch.run(recipe, 0, write_result, {}, tmp_path / "published")
        return (tmp_path / "published" / "result").read_bytes()

    first = publish()
    lock = tmp_path / "runs" / run_label(recipe) / "lock"
    lock.unlink()
    lock.mkdir()  # cannot be opened, like the file of another person
    shutil.rmtree(tmp_path / "published")
    assert publish() == first


def write_result(job: Job) -> None:
    (job.out / "result").write_bytes(os.urandom(8))
