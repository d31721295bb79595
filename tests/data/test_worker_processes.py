"""Worker processes: how many fit, and that none of them outlives its stage or is waited for."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from salmask.data import worker_processes
from salmask.data.worker_processes import fit_into_shared_memory, load_batches
from salmask.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = "tests.helpers.stage_ends"
KINDS: dict[str, tuple[int, str]] = {  # exit code, and a part of the output
    "error": (1, "ZeroDivisionError"),
    "disk full": (1, "no space is left on the disk"),
    "worker killed": (1, "was killed by signal 9"),
    "SIGTERM": (143, "stopped: received a stop signal"),
    "SIGTERM, blocked": (143, "stopped: received a stop signal"),
    "SIGINT, blocked": (130, "stopped by Ctrl-C"),
    "SIGKILL, blocked": (-9, ""),
    "training SIGTERM, blocked": (143, "while waiting for images; a checkpoint is saved"),
}


def ends_of(folder: Path, kinds: list[str], *before: str) -> dict[str, dict[str, Any]]:
    command = [*before, sys.executable, "-m", SCRIPT, str(folder), *kinds]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    ends: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return ends


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return ends_of(tmp_path_factory.mktemp("ends"), list(KINDS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_ends_with_its_workers(ends, kind):
    end, (code, part) = ends[kind], KINDS[kind]
    assert end["code"] == code and part in end["output"], end
    assert end["seconds"] < 20 and end["left"] == 0
    assert ("Traceback" in end["output"]) == (kind == "error")


def test_a_signal_while_waiting_saves_the_steps_before(ends):
    assert ends["training SIGTERM, blocked"]["saved"] == ["step-000000002.pt"]


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("unshare"), reason="mounts a small /dev/shm"
)
def test_full_shared_memory_is_an_error(tmp_path):
    """The size that this stage states is too small, so that the check before does not help."""
    script = 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"'
    mounted = ("unshare", "-m", "sh", "-c", script, "sh")
    end = ends_of(tmp_path, ["shared memory full"], *mounted)["shared memory full"]
    assert end["code"] == 2 and end["left"] == 0, end
    assert "error: worker processes cannot hand over batches" in end["output"]
    assert "Traceback" not in end["output"] and "images: resident" in end["output"]


@pytest.mark.parametrize(
    ("free", "workers", "expected"),
    [
        (10**9, 2, (2, 4)),
        (12_000, 2, (2, 3)),
        (4_000, 2, (2, 1)),
        (4_000, 8, (2, 1)),
        (3_000, 8, (1, 1)),
        (0, 0, (0, None)),
    ],
)
def test_workers_and_their_batches_fit_into_shared_memory(free, workers, expected, monkeypatch):
    monkeypatch.setattr(worker_processes, "free_shared_memory", lambda: free)
    assert fit_into_shared_memory(1000, workers) == expected


def test_a_batch_that_does_not_fit_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(worker_processes, "free_shared_memory", lambda: 64_000_000)
    message = (
        r"batches of 40.0 MB: they need 120.0 MB of shared memory, but 64.0 MB are free in /dev/shm"
    )
    with pytest.raises(UserError, match=message):
        next(load_batches(torch.arange(4), workers=2, batch_bytes=40_000_000))
    batches = load_batches(torch.arange(4), workers=9, batch_bytes=20_000_000, batch_size=2)
    assert torch.cat(list(batches)).tolist() == [0, 1, 2, 3]
    assert "only 1 of 9 worker processes are used" in caplog.text


def test_a_wait_for_data_has_a_limit(monkeypatch, caplog):
    monkeypatch.setattr(worker_processes, "_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(worker_processes, "_LIMIT_SECONDS", 1.5)
    with pytest.raises(worker_processes.WorkerDiedError, match="no batch of images arrived"):
        next(load_batches(_Blocked(), workers=1, batch_bytes=1, batch_size=None, sampler=range(2)))
    assert "no images for" in caplog.text


class _Blocked:
    def __getitem__(self, index: int) -> int:
        time.sleep(1000)
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_raised_here(workers):
    with pytest.raises(ZeroDivisionError):
        list(load_batches(_Failing(), workers=workers, batch_bytes=1, batch_size=None,
                          sampler=range(2)))  # fmt: skip
    assert not worker_processes._running


class _Failing:
    def __getitem__(self, index: int) -> float:
        return 1 / index


@pytest.mark.parametrize("locked", [False, True])
def test_the_thread_that_pins_batches_ends_too(monkeypatch, locked):
    """On a pretended accelerator. A worker that is killed may have locked the queue."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    monkeypatch.setattr(worker_processes, "_JOIN_SECONDS", 1.0)
    options = {"batch_size": None, "sampler": range(1000), "pin_memory": True}
    batches = load_batches(torch.arange(1000), workers=2, batch_bytes=1, **options)
    assert [int(next(batches)) for _ in range(3)] == [0, 1, 2]
    iterator = worker_processes._running[0].iterator
    thread, start = iterator._pin_memory_thread, time.monotonic()
    if locked:
        iterator._worker_result_queue._wlock.acquire()
    batches.close()
    assert time.monotonic() - start < 10 and not worker_processes._running
    assert locked or not thread.is_alive()
