import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from salmask.errors import UserError
from salmask.train import checkpoint


def state(step: int, fingerprint: str = "f") -> dict:
    return {
        "fingerprint": fingerprint,
        "step": step,
        "model": {"w": torch.full((100,), float(step))},
        "history": [{"epoch": 1, "loss": 0.5}],
    }


def save(folder, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, state(step))


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "new" / "folder", 7)
    result = checkpoint.load_newest(tmp_path / "new" / "folder", "f")
    assert result["step"] == 7
    assert result["history"] == [{"epoch": 1, "loss": 0.5}]
    assert torch.equal(result["model"]["w"], torch.full((100,), 7.0))


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "absent", "f") is None


def test_only_the_newest_two_are_kept(tmp_path):
    save(tmp_path, 9, 10, 100, 1000)
    assert [path.name for path in checkpoint.saved(tmp_path)] == [
        "step-000001000.pt",
        "step-000000100.pt",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000100.pt", "step-000001000.pt"]
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 1000


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def without_digest(path: Path) -> None:
    """As versions before the digest wrote it."""
    torch.save(torch.load(path, weights_only=True), path)


SIZE = 2000  # less than a checkpoint
PLACES = [0, 1, 30, -1, -20, -32, -33, *np.random.default_rng(0).integers(0, SIZE, 20).tolist()]


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(partial(flip, place=place), id=f"flipped {place}") for place in PLACES),
        *(pytest.param(partial(truncate, size=n), id=f"{n} bytes") for n in (0, 10, 32, SIZE)),
        without_digest,
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used_with_a_warning(tmp_path, caplog, damage):
    save(tmp_path, 1, 2)
    newest, older = checkpoint.saved(tmp_path)
    assert newest.stat().st_size > SIZE
    damage(newest)
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 1
    (warning,) = caplog.messages
    assert f"{newest} is damaged" in warning and f"{older.name}, the one before it" in warning


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_two(tmp_path):
    save(tmp_path, 1, 2, 3)
    flip(checkpoint.saved(tmp_path)[0], 100)
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 2
    checkpoint.save(tmp_path, 2, state(2))  # at once after the start
    names = [path.stem for path in checkpoint.saved(tmp_path)]
    assert names == ["step-000000002"]
    save(tmp_path, 3)
    flip(checkpoint.saved(tmp_path)[0], 100)
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 2


def test_when_none_can_be_read_training_starts_anew(tmp_path, caplog):
    save(tmp_path, 1, 2)
    for path in checkpoint.saved(tmp_path):
        path.write_bytes(b"")
    assert checkpoint.load_newest(tmp_path, "f") is None
    assert caplog.text.count("so the work starts anew") == 2


def test_a_kill_while_writing_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def half(state, stream) -> None:
        stream.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, state(2))
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 1
    save(tmp_path, 3)
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 3


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match=r"step-000000001\.pt belongs to run f, not g: remove"):
        checkpoint.load_newest(tmp_path, "g")


# ------------------------------------------------------------------- writing beside the training


def test_a_writer_saves_the_state_of_the_call(tmp_path):
    content = state(1)
    with checkpoint.Writer(tmp_path) as writer:
        writer.write(1, content)
        content["model"]["w"].zero_()  # the training goes on
    assert torch.equal(checkpoint.load_newest(tmp_path, "f")["model"]["w"], torch.ones(100))


def test_a_writer_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    released, save = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given: released.wait(60) and save(*given))
    with checkpoint.Writer(tmp_path) as writer:
        writer.write(1, state(1))
        assert checkpoint.saved(tmp_path) == []
        released.set()
        writer.write(2, state(2))  # one at a time
        assert checkpoint.load_newest(tmp_path, "f")["step"] >= 1
    assert len(checkpoint.saved(tmp_path)) == 2


@pytest.mark.parametrize("then", ["write", "wait", "raise_error", "end"])
def test_an_error_of_writing_is_raised(tmp_path, monkeypatch, then):
    def full(*_) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="no space left"), checkpoint.Writer(tmp_path) as writer:
        writer.write(1, state(1))
        writer.thread.join()
        if then == "write":
            writer.write(2, state(2))
        elif then != "end":
            getattr(writer, then)()
        assert then == "end"


def test_an_error_of_the_training_is_not_hidden_by_one_of_writing(tmp_path, monkeypatch, caplog):
    def full(*_) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(ZeroDivisionError), checkpoint.Writer(tmp_path) as writer:
        writer.write(1, state(1))
        raise ZeroDivisionError
    assert "a checkpoint could not be written: [Errno 28] no space left on device" in caplog.text


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from salmask.train import checkpoint
folder, at = Path(sys.argv[1]), int(sys.argv[2])
save = torch.save
def killing(state, stream):
    if state["step"] == 2 and at < 100:
        stream.write(b"x" * at)
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, stream)
torch.save = killing
with checkpoint.Writer(folder) as writer:
    for step in (1, 2, 3):
        writer.write(step, {"fingerprint": "f", "step": step})
        if at >= 100 and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # at whatever the thread does
"""


@pytest.mark.parametrize("at", [0, 50, 100])
def test_a_kill_beside_the_thread_leaves_a_readable_checkpoint(tmp_path, at):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(at)], check=False)
    assert killed.returncode == -9
    assert checkpoint.load_newest(tmp_path, "f")["step"] in ((1,) if at < 100 else (1, 2))
