"""`salmask init`: a new project in an empty folder, or newer project files in an old one."""

import shutil
import subprocess
from pathlib import Path

from salmask.commands.template import template_files, template_source
from salmask.datasets.listing import shorten
from salmask.errors import UserError

CODE = ("dvc.yaml", "slurm", "stages")  # what `--upgrade` replaces
_NEXT_STEPS = """\
{count} files written to {folder}. Next:
  dvc repro            # the demo; it needs no data and no GPU
  salmask results
For your own images, set data.name and data.root in params.yaml, then run `salmask doctor` and
`dvc repro`. Commit the project with `git add . && git commit`."""


def create_project(folder: Path) -> str:
    """Copies the project files into a folder and makes it a Git repository if it is in none.

    Returns:
        A message with the next steps.

    Raises:
        UserError: when a file of the project exists in the folder, or Git is not installed. Nothing
            is written then.
    """
    source = template_source()
    files = template_files(source)
    existing = [file.as_posix() for file in files if (folder / file).exists()]
    if existing:
        raise UserError(
            f"{folder} already holds {shorten(existing)}: run `salmask init` in an empty "
            "folder, or `salmask init --upgrade` in a project to replace its code"
        )
    if shutil.which("git") is None:
        raise UserError("git is not installed; DVC needs it: install it, then run this again")
    _copy(source, files, folder)
    if not _in_git(folder):
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return _NEXT_STEPS.format(count=len(files), folder=folder)


def upgrade_project(folder: Path) -> str:
    """Replaces dvc.yaml, `stages/` and the files of `slurm/` by those of the installed version.

    Files that only the project has stay, such as cluster profiles of your own. params.yaml and the
    suites stay as they are.

    Returns:
        A message with the names of the files that changed.

    Raises:
        UserError: when Git does not hold the present version of a file that would be replaced.
            Nothing is written then.
    """
    source = template_source()
    files = [file for file in template_files(source) if file.parts[0] in CODE]
    if folder.resolve() == source.resolve():
        raise UserError(f"{folder} is the repository of salmask itself: use `git pull` to upgrade")
    changed = [file for file in files if not _same(source / file, folder / file)]
    unsaved = [file.as_posix() for file in changed if _unsaved(folder, file)]
    if unsaved:
        raise UserError(
            f"{folder}: {shorten(unsaved)} would be replaced, but Git does not hold its present "
            "version: commit it first"
        )
    _copy(source, changed, folder)
    if not changed:
        return "dvc.yaml, stages/ and slurm/ are those of the installed version"
    names = "\n".join(f"  {file.as_posix()}" for file in changed)
    return f"replaced (`git diff` shows how):\n{names}\nSee docs/upgrading.md for what reruns."


def _copy(source: Path, files: list[Path], folder: Path) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, folder / file)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _in_git(folder: Path) -> bool:
    command = ["git", "rev-parse", "--is-inside-work-tree"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def _unsaved(folder: Path, file: Path) -> bool:
    """Whether a file exists in a version that is not committed."""
    if not (folder / file).exists():
        return False
    command = ["git", "status", "--porcelain", "--ignored", "--", file.as_posix()]
    status = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return status.returncode != 0 or bool(status.stdout)
