"""`salmask prune`: what it lists, what it removes, and what it leaves."""

import fcntl
import os
from pathlib import Path

import pytest

from salmask.commands.prune import leftovers, prune
from salmask.errors import UserError


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of two encoders, a pack, a run that stopped, and three results of two stages."""
    monkeypatch.delenv("SALMASK_RUNS", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    runs = tmp_path / "runs"
    for key in ("aaaa", "bbbb"):
        folder(runs / "features" / key, "key.json", "features.bin")
    folder(runs / "packs" / "dddd", "00000.tar", "index.safetensors", "lock")
    folder(runs / "pretrain-blur-000000000001", "job.json", "work/step-000000005.pt")
    for age, name in enumerate(["knn-blur-000000000003", "knn-blur-000000000002", "knn-mean-0001"]):
        folder(runs / name, "job.json", "out/metrics.json", "DONE")
        os.utime(runs / name / "DONE", (1000 + age, 1000 + age))
    folder(runs / "prepare-000000000004", "inspections.sqlite")
    return runs


def folder(path: Path, *files: str) -> None:
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")


def test_what_may_be_removed(runs: Path) -> None:
    assert [(each.kind, each.path.name, each.size) for each in leftovers(runs)] == [
        ("features", "aaaa", 4),
        ("features", "bbbb", 4),
        ("packs", "dddd", 6),
        ("unfinished", "pretrain-blur-000000000001", 4),
        ("superseded", "knn-blur-000000000003", 6),
    ]


def test_without_remove_nothing_is_removed(runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    lines = list(prune(runs.parent, [], False))
    assert len(lines) == 5 + 4 + 1 and "nothing was removed" in lines[-1]
    assert sorted(runs.rglob("*")) == before


def test_the_named_kinds_are_removed(runs: Path) -> None:
    before = {path.name for path in runs.iterdir()}
    list(prune(runs.parent, ["features"], True))
    assert not list((runs / "features").iterdir())
    assert {path.name for path in runs.iterdir()} == before
    list(prune(runs.parent, ["superseded", "unfinished", "packs"], True))
    removed = {"pretrain-blur-000000000001", "knn-blur-000000000003"}
    assert {path.name for path in runs.iterdir()} == before - removed
    assert not list((runs / "packs").iterdir())
    assert "nothing to remove" in next(prune(runs.parent, [], False))


def test_folders_in_use_are_left(runs: Path) -> None:
    for used in ("features/aaaa", "packs/dddd", "pretrain-blur-000000000001"):
        with (runs / used / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            assert runs / used not in [each.path for each in leftovers(runs)]
        assert runs / used in [each.path for each in leftovers(runs)]


def test_features_elsewhere(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "elsewhere" / "cccc", "key.json")
    monkeypatch.setenv("SALMASK_FEATURES", str(tmp_path / "elsewhere"))
    names = [each.path.name for each in leftovers(runs) if each.kind == "features"]
    assert names == ["cccc"]
    monkeypatch.setenv("SALMASK_FEATURES", "off")
    assert "features" not in {each.kind for each in leftovers(runs)}


@pytest.mark.parametrize(
    ("kinds", "message"), [(["everything"], "no kind 'everything'"), ([], "name what to remove")]
)
def test_unclear_requests_are_refused(runs: Path, kinds: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(prune(runs.parent, kinds, True))
