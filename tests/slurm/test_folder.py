"""The folder of a run: its lock, and the message of an attempt that failed."""

import errno
import fcntl
import os

import pytest

from salmask.errors import DataGoneError, InterruptedRunError, NonFiniteLossError, UserError
from slurm.errors import JobFailedError
from slurm.folder import failures, is_locked, locked, recorded_failure


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
