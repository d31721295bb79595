import pytest
import torch

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


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_the_checkpoint_before_a_truncated_one_is_used_with_a_warning(tmp_path, caplog, kept):
    save(tmp_path, 1, 2)
    newest = checkpoint.saved(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:kept])
    assert checkpoint.load_newest(tmp_path, "f")["step"] == 1
    assert newest.name in caplog.text


def test_when_none_can_be_read_training_starts_anew(tmp_path, caplog):
    save(tmp_path, 1, 2)
    for path in checkpoint.saved(tmp_path):
        path.write_bytes(b"")
    assert checkpoint.load_newest(tmp_path, "f") is None
    assert caplog.text.count("cannot be read") == 2


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
    with pytest.raises(ValueError, match=r"step-000000001\.pt belongs to run f, not g"):
        checkpoint.load_newest(tmp_path, "g")
