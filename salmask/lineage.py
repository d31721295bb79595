"""From an artifact back to its first inputs, with every digest checked on the way."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salmask.code_digests import code_digest
from salmask.provenance import FILE_NAME, file_digest, tree_digest


@dataclass(frozen=True)
class Link:
    """One artifact in a lineage. problems: what no longer matches, in words."""

    path: Path
    provenance: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    parents: list["Link"] = field(default_factory=list)

    def sound(self) -> bool:
        return not self.problems and all(parent.sound() for parent in self.parents)


def find(path: Path, root: Path) -> Path | None:
    """The provenance.json that speaks for `path`: in it, beside it or above it, below `root`."""
    start = path if path.is_dir() else path.parent
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
        if folder == root:
            break
    return None


@dataclass
class Memory:
    """What one walk has found already: inputs are shared by many artifacts."""

    links: dict[Path, Link] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)
    codes: dict[tuple[str, ...], str] = field(default_factory=dict)


def trace(path: Path, root: Path, memory: Memory | None = None) -> Link:
    """Walks from an artifact back to its first inputs, checking every digest on the way.

    path: absolute. Problems are collected, not raised. An input without provenance (a folder of
    images) is a leaf. memory: handed from call to call where several artifacts are traced.
    """
    memory = memory or Memory()
    if path not in memory.links:
        memory.links[path] = _link(path, root, memory)
    return memory.links[path]


def _link(path: Path, root: Path, memory: Memory) -> Link:
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    where = find(path, root)
    if where is None or not path.exists():
        return Link(shown, {}, [] if path.exists() else ["missing"])
    made = json.loads(where.read_text())
    problems = [*_changed_outputs(where.parent, made["outputs"])]
    modules = tuple(made["modules"])
    if modules not in memory.codes:
        memory.codes[modules] = code_digest(modules, root)
    if made["code"] != memory.codes[modules]:
        problems.append(f"the code of stage {made['stage']} has changed since")
    parents: dict[Path, Link] = {}
    for name, digest in made["inputs"].items():
        source = (root / name).resolve()
        made_in = find(source, root) if source.exists() else None
        artifact = made_in.parent if made_in else source  # several inputs may be of one artifact
        parents[artifact] = trace(artifact, root, memory)
        if source.exists() and source not in memory.digests:
            memory.digests[source] = tree_digest(source)
        if memory.digests.get(source, digest) != digest:
            problems.append(f"its input {name} has changed since (was sha256 {digest[:12]})")
    return Link(shown, made, problems, list(parents.values()))


def _changed_outputs(folder: Path, outputs: Mapping[str, str]) -> Iterator[str]:
    for name, digest in outputs.items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif file_digest(folder / name) != digest:
            yield f"{name} is not the file that was made (its sha256 differs)"


def summary(link: Link) -> str:
    """One line: the chain of stages with the digests that identify them, last first."""
    steps, todo, seen = [], [link], set()
    while todo:
        step = todo.pop(0)
        mark = step.provenance.get("fingerprint")
        if mark and mark not in seen:
            seen.add(mark)
            name = ":".join(filter(None, [step.provenance["stage"], step.provenance["name"]]))
            steps.append(f"{name}@{mark}")
        todo.extend(step.parents)
    return " < ".join(steps)
