"""The wheel installs `salmask` only, and `salmask init` of it lays out a project that works."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from salmask.commands.template import template_files
from tests.helpers.project import ROOT, git_files

CONSOLE_SCRIPT = "import sys\nfrom salmask.commands.cli import main\nsys.exit(main())\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from a copy of the repository's files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in git_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(source)],
        check=True,
    )
    (file,) = out.glob("*.whl")
    return file


class Installed:
    """An unpacked wheel beside another package that has `stages` and `slurm` too."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.packages, self.project = folder / "packages", folder / "project"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        for name in ("stages", "slurm"):
            (self.packages / name).mkdir()
            (self.packages / name / "__init__.py").write_text("raise ImportError('the other one')")
        self.script = folder / "bin" / "salmask"  # as pip writes it: its folder is on sys.path
        self.script.parent.mkdir()
        self.script.write_text(CONSOLE_SCRIPT)
        self.project.mkdir()

    def python(self, *arguments: str) -> str:
        """The output of Python in the project, without the repository on its path."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.project,
            env=os.environ | {"PYTHONPATH": str(self.packages), "SALMASK_DEVICE": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A project that `salmask init` of the wheel made."""
    made = Installed(wheel, tmp_path_factory.mktemp("installed"))
    assert "dvc repro" in made.python(str(made.script), "init")
    return made


def test_nothing_but_salmask_is_at_the_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"salmask"}


def test_the_package_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in git_files() if name.startswith("salmask/")} <= names
    assert {f"salmask/template/{file.as_posix()}" for file in template_files(ROOT)} <= names


def test_the_project_has_the_files_of_the_repository(installed: Installed) -> None:
    for file in template_files(ROOT):
        assert (installed.project / file).read_bytes() == (ROOT / file).read_bytes()


def test_check_accepts_the_project(installed: Installed) -> None:
    installed.python(str(installed.script), "check")


def test_digests_are_those_of_the_repository(installed: Installed, tmp_path: Path) -> None:
    """They cover the package that is imported, wherever it is installed."""
    installed.python("-m", "stages.code")
    inside = installed.project / "artifacts/code"
    digests = {path.relative_to(inside): path.read_text() for path in inside.rglob("*.sha256")}
    for name in git_files():
        if name.startswith(("salmask/", "stages/", "slurm/")) or "/" not in name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "stages.code"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=True,
    )
    outside = tmp_path / "artifacts/code"
    assert digests == {
        path.relative_to(outside): path.read_text() for path in outside.rglob("*.sha256")
    }
    assert digests
