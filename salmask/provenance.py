"""What made an artifact: code, params, input digests, versions, seed.

Every stage leaves `provenance.json` in its output folder. It holds nothing that differs between
equal runs (no time, host or job id: those stand in the run's own folder), so that a rebuilt
artifact has the same bytes.
"""

import ast
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from salmask.errors import UserError

FILE_NAME = "provenance.json"
OUR_PACKAGES = ("stages", "salmask")  # not slurm: where work runs decides no result
RECORDED_VERSIONS = ("torch", "torchvision", "numpy", "pillow", "zarr", "timm")
_BLOCK = 1 << 20


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def tree_digest(path: Path) -> str:
    """sha256 of a file, or of the sorted (name, sha256) of everything below a folder."""
    if path.is_file():
        return file_digest(path)
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()


def value_digest(value: Any) -> str:
    """sha256 of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# ---------------------------------------------------------------------------------------- code


def code_digest(module: str, root: Path) -> str:
    """sha256 of what a module and everything of ours that it imports *do*.

    Comments, docstrings and layout do not count. Files beside the modules that are not Python
    (page templates, tables) count by their bytes.
    """
    sha = hashlib.sha256()
    files = sorted(set(_reach(module, root)))
    for file in files:
        tree = ast.dump(_without_docstrings(ast.parse(file.read_text())))
        sha.update(f"{file.relative_to(root).as_posix()}\0{tree}\n".encode())
    for folder in sorted({file.parent for file in files} - {root}):
        for extra in sorted(folder.iterdir()):
            if extra.suffix in (".j2", ".json"):
                sha.update(f"{extra.relative_to(root).as_posix()}\0{file_digest(extra)}\n".encode())
    return sha.hexdigest()


def _reach(module: str, root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen or name.split(".")[0] not in OUR_PACKAGES:
            continue
        seen.add(name)
        if "." in name:
            todo.append(name.rpartition(".")[0])  # importing a.b.c runs a and a.b too
        file = _module_file(name, root)
        if file is None:
            continue
        yield file
        todo.extend(imported_modules(file, name, root))


def _module_file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for file in (base / "__init__.py", base.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def imported_modules(file: Path, name: str, root: Path) -> set[str]:
    """The modules of ours that one source file names in an import statement or, for a package
    whose modules are found by name (frameworks), by lying in its folder."""
    found: set[str] = set()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            for alias in node.names:  # `from salmask.masks import fill` names a module
                if _module_file(f"{node.module}.{alias.name}", root):
                    found.add(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Name) and node.id == "import_module":
            found.update(f"{name}.{p.stem}" for p in file.parent.glob("*.py") if p != file)
    return {m for m in found if m.split(".")[0] in OUR_PACKAGES}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if is_text and isinstance(first.value.value, str):  # type: ignore[union-attr]
                node.body = node.body[1:] or [ast.Pass()]
    return tree


# -------------------------------------------------------------------------------------- record


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a stage makes. Its fingerprint names the work."""

    stage: str
    name: str
    code: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """12 hex digits over all fields."""
        return value_digest(vars(self))[:12]


def recipe(
    stage: str, name: str, params: Mapping[str, Any], inputs: list[Path], root: Path
) -> Recipe:
    """A Recipe with the code and the inputs digested. inputs: paths relative to `root`."""
    digests = {path.as_posix(): tree_digest(root / path) for path in inputs}
    return Recipe(stage, name, code_digest(f"stages.{stage}", root), dict(params), digests)


def record(
    made_by: Recipe, outputs: Path, device: torch.device, pattern: str = "**/*"
) -> dict[str, Any]:
    """The provenance of the files in the folder `outputs` that match `pattern`."""
    files = sorted(p for p in outputs.glob(pattern) if p.is_file() and p.name != FILE_NAME)
    return {
        "stage": made_by.stage,
        "name": made_by.name,
        "fingerprint": made_by.fingerprint,
        "code": made_by.code,
        "params": dict(made_by.params),
        "inputs": dict(made_by.inputs),
        "outputs": {p.relative_to(outputs).as_posix(): file_digest(p) for p in files},
        **environment(device),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device: what equal recipes may still differ by."""
    packages = {package: version(package) for package in RECORDED_VERSIONS}
    return {
        "versions": {"python": platform.python_version()} | packages,
        "device": {"type": device.type, "threads": torch.get_num_threads()},
    }


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one at or above `start` that holds dvc.yaml."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"no dvc.yaml at or above {here}: run this from the project's folder")
