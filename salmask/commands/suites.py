"""`salmask suite`: reads a parameter file of suites/, and writes it to params.yaml.

A suite may extend other suites (`extends: NAME`, or a list of names; later names take precedence).
A run, table, import or data set that is null is removed. A run may be a grid (see `grids`).
"""

import hashlib
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from salmask.commands import grids
from salmask.errors import UserError
from salmask.params.names import CHOSEN, run_names
from salmask.params.overlay import REQUIRED_BY_DVC, SECTIONS, merge
from salmask.params.yaml_file import Params

FOLDER = "suites"
_NAMED = ("runs", "tables", "imports", "transfer", "detect")  # an entry that is null is removed
_HEADER = (
    "# suites/{name}.yaml, written by `salmask suite {name}`. What follows has sha256 {digest}\n"
)
_STYLE: Any = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True, "width": 100}
_FIRST_LINE = re.compile(r"# suites/(\S+)\.yaml, written by .* sha256 ([0-9a-f]{64})\n")


def names(root: Path) -> list[str]:
    """The names of a project's suites, sorted."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def load(root: Path, name: str) -> Params:
    """Reads a suite, with everything that it extends, and expands its grids.

    Args:
        root: the folder of the project.
        name: name of the suite.

    Raises:
        UserError: if there is no such suite, or it cannot be read.
    """
    if name not in names(root):
        raise UserError(f"no suite `{name}`; there are: {', '.join(names(root))}")
    where = f"{FOLDER}/{name}.yaml"
    values = {**{key: {} for key in REQUIRED_BY_DVC}, **_read(root / FOLDER, name, ())}
    for key in _NAMED:
        if not isinstance(values.get(key), Mapping):
            raise UserError(f"{where}: {key}: must be a mapping, got {values.get(key)!r}")
        values[key] = {name: entry for name, entry in values[key].items() if entry is not None}
    values["runs"], values["sweeps"] = grids.expand(values["runs"], where)
    values["evaluate"] = _evaluations(values)
    return Params({key: values[key] for key in SECTIONS if key in values} | values, where)


def install(root: Path, name: str) -> str:
    """Checks a suite and writes it to params.yaml.

    Args:
        root: the folder of the project.
        name: name of the suite.

    Returns:
        A message for the user.

    Raises:
        UserError: for a suite that does not fit, and for uncommitted edits of params.yaml.
    """
    from salmask.commands.check import validate  # imports torch, which listing suites does without

    params = load(root, name)
    validate(params)
    target = root / "params.yaml"
    edits = subprocess.run(
        ["git", "status", "--porcelain", target.name], cwd=root, capture_output=True, text=True
    )
    if (
        edits.stdout.strip()
        and target.is_file()
        and not is_unedited(target.read_text(encoding="utf-8"))
    ):
        raise UserError(
            "params.yaml has uncommitted edits, which this would overwrite: commit them first"
        )
    target.write_text(text(name, params), encoding="utf-8")
    runs = len(run_names(params))
    return f"params.yaml is now {params.source} ({runs} runs); continue with `dvc repro`"


def text(name: str, params: Params) -> str:
    """The content of params.yaml for a suite. Its first line has a digest of all other lines."""
    body = yaml.dump(dict(params.values), Dumper=_NoAliases, **_STYLE)
    return _HEADER.format(name=name, digest=_digest(body)) + body


def is_unedited(content: str) -> bool:
    """Whether the content of params.yaml is exactly what `salmask suite` wrote."""
    first = _FIRST_LINE.match(content)
    return first is not None and first[2] == _digest(content[first.end() :])


def _read(folder: Path, name: str, extending: tuple[str, ...]) -> dict[str, Any]:
    """The values of a suite merged over those that it extends.

    extending: the suites on the path to this one, to detect a cycle.
    """
    if name in extending:
        raise UserError(f"{FOLDER}/{name}.yaml extends itself: {' -> '.join((*extending, name))}")
    own = dict(Params.read(folder / f"{name}.yaml").values)
    extends = own.pop("extends", [])
    bases = [extends] if isinstance(extends, str) else extends
    if not isinstance(bases, list):
        raise UserError(
            f"{FOLDER}/{name}.yaml: extends: must be the name of a suite or a list of names, got "
            f"{extends!r}"
        )
    values: dict[str, Any] = {}
    for base in bases:
        if not (folder / f"{base}.yaml").is_file():
            raise UserError(f"{FOLDER}/{name}.yaml: extends: there is no {FOLDER}/{base}.yaml")
        values = merge(values, _read(folder, base, (*extending, name)))
    return merge(values, own)


def _evaluations(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `evaluate` with complete lists of runs under `chosen`.

    A grid or setting there stands for its runs. An evaluation that has a stage of its own and is
    listed under `protocols` is chosen for all runs and imports.
    """
    evaluate = values.get("evaluate") or {}
    protocols = evaluate.get("protocols") or []
    chosen = {name: [] for name in CHOSEN} | (evaluate.get("chosen") or {})
    everything = [*values["runs"], *(values.get("imports") or {})]
    members = grids.members(values["sweeps"])
    runs = {
        protocol: everything
        if protocol in protocols
        else [run for name in listed or [] for run in members.get(name, [name])]
        for protocol, listed in chosen.items()
    }
    common = [protocol for protocol in protocols if protocol not in CHOSEN]
    return {**evaluate, "protocols": common, "chosen": runs}


class _NoAliases(yaml.SafeDumper):
    """Writes equal values in full instead of as YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
