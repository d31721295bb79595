"""A copy of the project with tiny parameters, for tests that run stages for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import preloaded

ROOT = Path(__file__).parents[2]
ONE_THREAD = Path(__file__).with_name("one_thread.yaml")  # more only compete on so few images

TINY: dict[str, Any] = {
    "seed": 0,
    "data": {
        "name": "demo",
        "root": "artifacts/code/demo.sha256",
        "images": {"train": 96, "val": 32, "decorrelated": 32},
    },
    "localizer": {"name": "lite0"},
    "saliency": {"levels": [64], "correction": 16, "shard_rows": 64, "batch": 32},
    "encoder": {"arch": "resnet10", "width": 8, "stem": "small2"},
    "view": {"size": 32, "grid": 4, "blur_p": 0.0},
    "framework": {"name": "moco", "dim": 16, "hidden": 16, "queue": 64, "bn_group": 16},
    "train": {"epochs": 2, "warmup_epochs": 1, "batch": 32, "optimizer": "adamw", "lr": 0.002,
              "images": "resident"},
    "mask": {"name": "none"},
    "runs": {"plain": {}, "blurred": {"mask": {"name": "blur"}}},
    "imports": {},
    "tables": {},
    "sweeps": {},
    "evaluate": {
        "protocols": ["knn", "linear_fast"],
        "chosen": {"linear": [], "finetune": [], "transfer": [], "detect": [], "variance": [],
                   "variance_through": []},
        "knn": {"k": [5], "random_seeds": 1},
        "linear_fast": {"iterations": 20},
        "linear": {"epochs": 2, "batch": 32, "lr": 1.0, "milestones": [1]},
        "finetune": {"epochs": 2, "batch": 8, "shares": [10], "images": "resident"},
        "transfer": {"l2_steps": 3, "iterations": 10},
        "variance": {"views": 3, "images": "resident"},
    },
    "transfer": {},
    "detect": {},
}  # fmt: skip


def git_files() -> list[str]:
    """Everything that a commit of the working tree would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


class Project:
    """A project's folder with Git and DVC, and methods that run its commands."""

    def __init__(self, folder: Path, params: dict[str, Any]) -> None:
        self.folder = folder
        for name in git_files():
            if name != "dvc.lock" and not name.startswith("artifacts/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.write_params(params)
        self.run("git", "init", "--quiet")

    @classmethod
    def at(cls, folder: Path) -> "Project":
        """The project in an existing folder."""
        project = cls.__new__(cls)
        project.folder = folder
        return project

    def write_params(self, params: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def environment(self, **more: str) -> dict[str, str]:
        """The caller's environment, without the variables that change paths or devices of
        stages."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SALMASK_", "DVC_"))}
        folders = [preloaded.folder(), Path(sys.executable).parent, env["PATH"]]
        env["PATH"] = os.pathsep.join(str(folder) for folder in folders)
        return env | {"SALMASK_CLUSTER": str(ONE_THREAD), "OMP_NUM_THREADS": "1"} | more

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        """Runs a command in the project; its output. Fails unless it exits with `code`."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == code, f"{command} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def stage(self, name: str, *arguments: str, code: int = 0, **env: str) -> str:
        return self.run("python", "-m", f"stages.{name}", *arguments, code=code, **env)

    def salmask(self, *arguments: str, code: int = 0) -> str:
        """Runs the command `salmask` of the project's own code."""
        return self.run("python", "-m", "salmask.commands.cli", *arguments, code=code)

    def repro(self, *arguments: str) -> list[str]:
        """Runs `dvc repro`. Returns the stages that ran, in order, without `code`, which always
        runs."""
        out = self.run("dvc", "repro", *arguments)
        marks = [line for line in out.splitlines() if line.startswith("Running stage ")]
        return [name for line in marks if (name := line.split("'")[1]) != "code"]
