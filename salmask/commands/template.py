"""The files of a project that `salmask init` lays out. `setup.py` runs this file too, before
anything is installed, so it imports the standard library only."""

from pathlib import Path

FOLDER = "template"  # in the installed package
PATTERNS = (
    ".dvc/.gitignore",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "params.yaml",
    "slurm/*.py",
    "slurm/*.sh",
    "slurm/clusters/*.yaml",
    "slurm/doctor/*.py",
    "slurm/testcluster/*.conf",
    "stages/*.py",
    "suites/*.yaml",
    "suites/recipes/*.yaml",
)


def template_files(source: Path) -> list[Path]:
    """The project files below `source`, relative to it, sorted."""
    return sorted(path.relative_to(source) for pattern in PATTERNS for path in source.glob(pattern))


def template_source() -> Path:
    """The folder that holds the project files: inside an installed package, or the repository of
    an editable install."""
    package = Path(__file__).parents[1]
    installed = package / FOLDER
    return installed if installed.is_dir() else package.parent
