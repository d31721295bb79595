"""Provenance of an artifact: code, parameters, digests of its inputs, and software versions.

Every stage writes `provenance.json` to its output folder. The file holds nothing that differs
between equal runs (no time, host or job id: they are in the folder of the run), so that a rebuilt
artifact has the same bytes.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salmask.code_digests import code_digest
from salmask.errors import UserError
from salmask.files import absolute, file_digest, tree_digest, value_digest
from salmask.params.yaml_file import Params

if TYPE_CHECKING:
    import torch

FILE_NAME = "provenance.json"
RECORDED_VERSIONS = ("torch", "torchvision", "numpy", "pillow", "zarr", "timm")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a stage makes. Its fingerprint is the name of the work.

    Args:
        stage: name of the stage, or of the protocol of an evaluation.
        name: name of the run, data set or import; empty for a stage that exists once.
        modules: the modules that `code` covers, before their imports.
        code: digest of these modules (see `code_digests`).
        params: the parameters that were read, by dotted key.
        inputs: sha256 of each input, by path relative to the project.
    """

    stage: str
    name: str
    modules: tuple[str, ...]
    code: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """12 hex digits over all fields."""
        return value_digest(vars(self))[:12]


def recipe(
    stage: str,
    name: str,
    modules: Sequence[str],
    params: Mapping[str, Any],
    inputs: Sequence[Path],
    project: Path,
) -> Recipe:
    """A Recipe, with its code and inputs digested.

    Args:
        stage: as in Recipe.
        name: as in Recipe.
        modules: as in Recipe (see `stage_modules`).
        params: the parameters that were read.
        inputs: paths relative to the project.
        project: the folder of the project.
    """
    digests = {path.as_posix(): tree_digest(project / path) for path in inputs}
    code = code_digest(modules, project)
    return Recipe(stage, name, tuple(modules), code, dict(params), digests)


def changed_params(made_by: Recipe, project: Path) -> list[str]:
    """The dotted keys of the recipe's parameters whose values in params.yaml differ now."""
    if not made_by.params:
        return []
    now = Params.read(project / "params.yaml")
    pairs = [(key, value, now.value(key)) for key, value in made_by.params.items()]
    return [key for pair in pairs for key in _differences(*pair)]


def _differences(key: str, before: Any, now: Any) -> list[str]:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [key]
    names = [*before, *(name for name in now if name not in before)]
    pairs = [(f"{key}.{name}", before.get(name), now.get(name)) for name in names]
    return [name for pair in pairs for name in _differences(*pair)]


def changed_files(made_by: Recipe, project: Path, code: Path) -> list[str]:
    """The inputs of a recipe that differ now, and the code in the folder `code` if it differs."""
    changed = [
        str(project / name)
        for name, sha256 in made_by.inputs.items()
        if tree_digest(project / name) != sha256
    ]
    same_code = code_digest(made_by.modules, code) == made_by.code
    return changed if same_code else [f"the code in {code}", *changed]


def record(
    made_by: Recipe, outputs: Path, device: "torch.device", pattern: str = "**/*"
) -> dict[str, Any]:
    """The content of provenance.json for the files in the folder `outputs` that match `pattern`."""
    files = sorted(p for p in outputs.glob(pattern) if p.is_file() and p.name != FILE_NAME)
    return {
        **vars(made_by),
        "fingerprint": made_by.fingerprint,
        "outputs": {p.relative_to(outputs).as_posix(): file_digest(p) for p in files},
        **environment(device),
    }


def environment(device: "torch.device") -> dict[str, Any]:
    """Software versions and the device, which may differ between equal recipes."""
    import torch  # a second of imports that most readers of provenance do not need

    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in RECORDED_VERSIONS}
    hardware: dict[str, Any] = {"type": device.type, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        hardware["model"] = torch.cuda.get_device_name(device)
    return {"versions": versions, "device": hardware}


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one at or above `start` that holds dvc.yaml.

    Raises UserError when there is none.
    """
    here = absolute(start or Path.cwd())
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"no dvc.yaml at or above {here}: run this from the project's folder")
