"""`salmask init` lays out a project and replaces its code, and overwrites nothing else."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from salmask.commands.cli import main
from salmask.commands.template import template_files
from tests.helpers.project import ROOT, git_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_an_empty_folder_becomes_a_project(folder: Path) -> None:
    result = init()
    assert result.exit_code == 0, result.output
    assert "dvc repro" in result.output
    for file in template_files(ROOT):
        assert (folder / file).read_bytes() == (ROOT / file).read_bytes()
    assert (folder / ".git").is_dir()


def test_the_template_holds_all_tracked_files_of_its_folders() -> None:
    folders = ("stages", "slurm", "suites", ".dvc")
    tracked = {Path(name) for name in git_files() if Path(name).parts[0] in folders}
    assert tracked <= set(template_files(ROOT))
    assert not [file for file in template_files(ROOT) if "__pycache__" in file.parts]


def test_a_folder_inside_a_repository_gets_no_repository_of_its_own(folder: Path) -> None:
    git(folder, "init", "--quiet")
    project = folder / "project"
    project.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert init().exit_code == 0
    assert not (project / ".git").exists()


def test_existing_files_are_not_overwritten(folder: Path) -> None:
    (folder / "params.yaml").write_text("mine: true\n")
    result = init()
    assert result.exit_code == 2
    assert "already holds params.yaml" in result.output
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_upgrade_replaces_committed_code_only(folder: Path) -> None:
    init()
    profile = folder / "slurm/clusters/mine.yaml"
    profile.write_text("executor: local\n")
    (folder / "params.yaml").write_text("mine: true\n")
    (folder / "stages/detect.py").write_text("old\n")
    assert "commit it first" in init("--upgrade").output
    assert (folder / "stages/detect.py").read_text() == "old\n"
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "old version")
    result = init("--upgrade")
    assert result.exit_code == 0 and "stages/detect.py" in result.output
    assert git(folder, "status", "--porcelain").split() == ["M", "stages/detect.py"]
    git(folder, "commit", "--quiet", "-am", "new version")
    assert "are those of the installed version" in init("--upgrade").output


def test_the_repository_itself_is_not_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "git pull" in init("--upgrade").output
