"""Digests of the code that decides a result.

The digest of a stage covers the stage's script, the modules that its parameters select by name
(its mask, its framework, its data set), and everything of ours that these modules import. Comments,
docstrings, layout and the texts of messages do not count. Labels and lineage count for the report
only, which shows them.
"""

import ast
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

OUR_PACKAGES = ("stages", "salmask")  # not slurm: where work runs does not decide a result
DATA_FILES = (".j2", ".json")  # files beside the modules, which count by their bytes
# Modules that do not decide what is computed.
WITHOUT_EFFECT = frozenset(
    {
        "salmask",
        "salmask.by_name",
        "salmask.code_digests",
        "salmask.collapse",
        "salmask.data.free_memory",
        "salmask.data.worker_processes",
        "salmask.errors",
        "salmask.evaluate.probe",
        "salmask.job",
        "salmask.lineage",
        "salmask.memory",
        "salmask.params.mistakes",
        "salmask.params.probe",
        "salmask.params.ranges",
        "salmask.params.yaml_lines",
        "salmask.progress",
        "salmask.temporary_folder",
        "salmask.provenance",
        "salmask.stop_signals",
        "salmask.threads",
        "salmask.train.check_run",
        "salmask.train.speed",
        "stages.errors",
    }
)
REPORT = "stages.report"
SHOWN_BY_REPORT = {"salmask.collapse", "salmask.lineage"}  # modules without effect on other stages
# Functions, and objects whose methods, only show a text.
_MESSAGES = {"print", "click.echo"}
_LOGS = ("log.", "logging.", "warnings.")
# Fields of records that only describe: labels, licences, costs.
_DESCRIPTIONS = {
    "Mask": {"label", "hard_negatives", "extra_passes", "query_only", "uneven_patches", "kinds"},
    "Evaluation": {"label", "main_suffix"},
    "Dataset": {"layout", "origin", "terms", "note", "downloads", "train_images"},
}
_RANGES = "salmask.params.ranges"


def code_digest(modules: Sequence[str], project: Path, messages: bool = False) -> str:
    """sha256 of what modules, and all modules of ours that they import, do.

    Args:
        modules: dotted names.
        project: the folder that holds `stages/`.
        messages: whether the texts of errors and messages count.
    """
    descriptions = REPORT in modules
    sha = hashlib.sha256()
    for name, file in sorted(reached(modules, project).items()):
        parts = _parsed(file.read_text(encoding="utf-8"))
        counted = [parts.effect]
        counted += [parts.messages] if messages else []
        counted += [parts.descriptions] if descriptions else []
        sha.update(f"{name}\0{' '.join(counted)}\n".encode())
        if file.name == "__init__.py" or name.startswith("stages"):
            continue
        for extra in _data_files(file):
            content = hashlib.sha256(extra.read_bytes()).hexdigest()
            sha.update(f"{name}/{extra.name}\0{content}\n".encode())
    return sha.hexdigest()


def reached(modules: Sequence[str], project: Path) -> dict[str, Path]:
    """The modules that a digest covers, with their files: `modules`, and what they import."""
    without_effect = WITHOUT_EFFECT - (SHOWN_BY_REPORT if REPORT in modules else set())
    files: dict[str, Path] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in files or name in without_effect or name.split(".")[0] not in OUR_PACKAGES:
            continue
        if "." in name:
            pending.append(name.rpartition(".")[0])  # importing a.b.c runs a and a.b too
        file = module_file(name, project)
        if file is not None:
            files[name] = file
            pending.extend(imported_modules(file, project))
    return files


def module_file(name: str, project: Path) -> Path | None:
    """The source file of a module: in the project, else where the package is installed.

    None when there is no such module.
    """
    top, *rest = name.split(".")
    base = project / top  # a clone holds salmask too, and its stages import that one
    if not base.is_dir() and top != "stages":
        base = _installed_folder(top)
    base = base.joinpath(*rest)
    for file in (base / "__init__.py", base.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def imported_modules(file: Path, project: Path) -> set[str]:
    """The modules of ours that import statements in a source file name."""
    names: set[str] = set()
    for name, members in _parsed(file.read_text(encoding="utf-8")).imports:
        names.add(name)
        names.update(f"{name}.{m}" for m in members if module_file(f"{name}.{m}", project))
    return names


def _installed_folder(name: str) -> Path:
    package = find_spec(name)
    assert package is not None and package.origin is not None
    return Path(package.origin).parent


def _data_files(file: Path) -> list[Path]:
    """The data files that a module's source names."""
    text = file.read_text(encoding="utf-8")
    beside = sorted(path for path in file.parent.iterdir() if path.suffix in DATA_FILES)
    return [path for path in beside if f'"{path.name}"' in text]


class _Parsed(NamedTuple):
    """The parts of a source file.

    Args:
        effect: sha256 of what the file does.
        messages: sha256 of the texts of errors and messages.
        descriptions: sha256 of the descriptions in records.
        imports: the modules of ours that the file imports, with the imported members.
    """

    effect: str
    messages: str
    descriptions: str
    imports: list[tuple[str, list[str]]]


@cache  # many digests cover the same files
def _parsed(text: str) -> _Parsed:
    """Parses a source file."""
    tree = ast.parse(text)
    imports: list[tuple[str, list[str]]] = []
    messages: list[ast.AST] = []
    descriptions: list[ast.AST] = []
    _remove_ranges(tree)
    for node in ast.walk(tree):  # visits a node before its children, so what is removed is left out
        if isinstance(node, ast.Import):
            imports += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.append((node.module, [alias.name for alias in node.names]))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            messages += _remove_arguments(node.exc)
        elif isinstance(node, ast.Call):
            name = _dotted(node.func)
            removed = _DESCRIPTIONS.get(name, set())
            descriptions += [keyword for keyword in node.keywords if keyword.arg in removed]
            removed = removed | ({"help"} if name == "click.option" else set())
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in removed]
            if name in _MESSAGES or name.startswith(_LOGS):
                messages += _remove_arguments(node)
    ours = [entry for entry in imports if entry[0].split(".")[0] in OUR_PACKAGES]
    return _Parsed(_digest([tree]), _digest(messages), _digest(descriptions), ours)


def _remove_ranges(tree: ast.Module) -> None:
    """Replaces the ranges of numbers in annotations, and `int` and `float`, by one word: which
    numbers an option accepts decides no result."""
    ranges = [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == _RANGES
    ]
    tree.body = [node for node in tree.body if node not in ranges]
    numbers = {"int", "float", *(alias.name for node in ranges for alias in node.names)}
    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None)
        for name in ast.walk(annotation) if annotation is not None else ():
            if isinstance(name, ast.Name) and name.id in numbers:
                name.id = "number"


def _remove_arguments(call: ast.Call) -> list[ast.AST]:
    """Removes the arguments of a call, and returns them."""
    removed = [*call.args, *call.keywords]
    call.args, call.keywords = [], []
    return removed


def _digest(nodes: Sequence[ast.AST]) -> str:
    text = "\n".join(ast.dump(node, annotate_fields=False) for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest()


def _dotted(node: ast.expr) -> str:
    """`log.warning` of a name or an attribute of a name; empty for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
