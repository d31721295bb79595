"""A clone stays clean: what the pipeline writes is untracked, and experiments of DVC work in it."""

import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.project import ROOT, TINY, Project, git_files

pytestmark = pytest.mark.pipeline


def commit(project: Project, *names: str) -> None:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    project.run("git", "add", *names)
    project.run("git", *who, "commit", "--quiet", "-m", "state")


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """A committed project in which nothing is computed."""
    project = Project(tmp_path, TINY)
    commit(project, ".")
    return project


def test_nothing_that_the_pipeline_writes_is_in_the_repository() -> None:
    assert not [name for name in git_files() if name.startswith("artifacts/")]
    assert "dvc.lock" not in git_files()


def test_the_pipeline_changes_no_tracked_file(project: Project) -> None:
    commit(project, *(name for name in git_files() if (project.folder / name).is_file()))
    lines = project.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert {line[:2] for line in lines} == {"??"}
    untracked = {line[3:] for line in lines}
    assert {"dvc.lock", "artifacts/evaluate/plain/knn/metrics.json"} <= untracked


def test_git_does_not_ignore_what_is_the_users_to_commit() -> None:
    names = ["dvc.lock", "artifacts/evaluate/a/knn/metrics.json"]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True)
    assert ignored.returncode == 1  # none is


def test_an_experiment_runs_in_a_fresh_clone(clone: Project) -> None:
    out = clone.run("dvc", "exp", "run", "prepare", "-S", "data.images.train=80")
    assert "Running stage 'prepare'" in out
    assert "80" in (clone.folder / "params.yaml").read_text()


def test_a_queued_experiment_finds_images_that_git_ignores(tmp_path: Path) -> None:
    data = {"name": "imagefolder", "root": "own/images", "min_side": 8}
    project = Project(tmp_path, TINY | {"data": data})
    for number in range(4):
        file = tmp_path / "own/images" / f"{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(file)
    (tmp_path / ".gitignore").write_text("/own/\n")
    commit(project, ".")
    project.run("dvc", "exp", "run", "--queue", "prepare", "-S", "data.min_side=30")
    project.run("dvc", "exp", "run", "--run-all")
    status = project.run("dvc", "queue", "status").splitlines()
    assert sum("Success" in line for line in status) == 1
    assert len(list((tmp_path / "own/images").rglob("*.png"))) == 4  # not removed with the copy
