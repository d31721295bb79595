"""Digests of the code that decides a result.

The digest of a stage covers the stage's script, the modules that its parameters select by name
(its mask, its framework, its data set), and everything of ours that these modules import. Comments,
docstrings, layout and the texts of messages do not count.
"""

import ast
import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

OUR_PACKAGES = ("stages", "salmask")  # not slurm: where work runs does not decide a result
DATA_FILES = (".j2", ".json")  # files beside the modules, which count by their bytes
# Modules that do not decide what is computed.
WITHOUT_EFFECT = frozenset(
    {
        "salmask.by_name",
        "salmask.code_digests",
        "salmask.errors",
        "salmask.job",
        "salmask.lineage",
        "salmask.progress",
        "salmask.provenance",
        "stages.errors",
        "stages.paths",
    }
)
_MESSAGES = ("print", "log.", "logging.", "warnings.", "click.")  # calls that only show a text


def code_digest(modules: Iterable[str], project: Path) -> str:
    """sha256 of what modules, and all modules of ours that they import, do.

    Args:
        modules: dotted names.
        project: the folder that holds `stages/`.
    """
    sha = hashlib.sha256()
    for name, file in sorted(reached(modules, project).items()):
        sha.update(f"{name}\0{_effect(file)}\n".encode())
        if file.name == "__init__.py" or name.startswith("stages"):
            continue
        for extra in _data_files(file):
            content = hashlib.sha256(extra.read_bytes()).hexdigest()
            sha.update(f"{name}/{extra.name}\0{content}\n".encode())
    return sha.hexdigest()


def reached(modules: Iterable[str], project: Path) -> dict[str, Path]:
    """The modules that a digest covers, with their files: `modules`, and what they import."""
    files: dict[str, Path] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in files or name in WITHOUT_EFFECT or name.split(".")[0] not in OUR_PACKAGES:
            continue
        if "." in name:
            pending.append(name.rpartition(".")[0])  # importing a.b.c runs a and a.b too
        file = module_file(name, project)
        if file is not None:
            files[name] = file
            pending.extend(imported_modules(file, project))
    return files


def module_file(name: str, project: Path) -> Path | None:
    """The source file of a module: of `stages` in the project, of `salmask` where it is imported
    from. None when there is no such module."""
    top, *rest = name.split(".")
    base = project / top if top == "stages" else _package_folder(top)
    base = base.joinpath(*rest)
    for file in (base / "__init__.py", base.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def imported_modules(file: Path, project: Path) -> set[str]:
    """The modules of ours that import statements in a source file name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            if node.module.split(".")[0] in OUR_PACKAGES:
                members = (f"{node.module}.{alias.name}" for alias in node.names)
                names.update(name for name in members if module_file(name, project))
    return {name for name in names if name.split(".")[0] in OUR_PACKAGES}


def _package_folder(name: str) -> Path:
    package = find_spec(name)
    assert package is not None and package.origin is not None
    return Path(package.origin).parent


def _data_files(file: Path) -> list[Path]:
    """The data files that a module's source names."""
    text = file.read_text(encoding="utf-8")
    beside = sorted(path for path in file.parent.iterdir() if path.suffix in DATA_FILES)
    return [path for path in beside if f'"{path.name}"' in text]


def _effect(file: Path) -> str:
    """The syntax tree of a file without docstrings and messages."""
    tree = _WithoutTexts().visit(ast.parse(file.read_text(encoding="utf-8")))
    return ast.dump(tree)


class _WithoutTexts(ast.NodeTransformer):
    """Removes docstrings, and the texts of errors and of log messages."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
        return super().generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node.func).startswith(_MESSAGES):
            node.args, node.keywords = [], []
        return self.generic_visit(node)
