"""The lineage of an artifact: the steps that made it, back to the first inputs.

Every digest on the way is compared with the files and with the present code, every record with its
own fingerprint, and outputs and parameters with dvc.lock, where DVC recorded them a second time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from salmask.code_digests import code_digest
from salmask.dvc_lock import LockedStage, differences, read_lock
from salmask.files import absolute, file_digest, parse_json, tree_digest
from salmask.provenance import FILE_NAME, Recipe

ARTIFACTS = "artifacts"  # the folder of everything that a stage makes


@dataclass(frozen=True)
class _Record:
    """What provenance.json has besides the fields of a Recipe."""

    fingerprint: str
    outputs: dict[str, str]
    versions: dict[str, str | None]
    device: dict[str, Any]


_RECIPES, _RECORDS = TypeAdapter(Recipe), TypeAdapter(_Record)


@dataclass(frozen=True)
class Link:
    """One artifact of a lineage.

    Args:
        path: of the artifact, relative to the project.
        provenance: content of its provenance.json; empty for an input that no stage made.
        problems: differences between the record and the present files, as texts.
        parents: the artifacts that it was made from.
    """

    path: Path
    provenance: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    parents: list["Link"] = field(default_factory=list)

    def sound(self) -> bool:
        """Whether neither this artifact nor any of its parents has a problem."""
        return not self.problems and all(parent.sound() for parent in self.parents)

    def all_problems(self) -> list[str]:
        """The problems of this artifact and of its parents, each once, after its path."""
        own = [f"{self.path}: {problem}" for problem in self.problems]
        inherited = [text for parent in self.parents for text in parent.all_problems()]
        return list(dict.fromkeys(own + inherited))

    def steps(self) -> list["Link"]:
        """Every recorded step of the lineage once, the last step first."""
        steps: dict[str, Link] = {}
        pending = [self]
        while pending:
            step = pending.pop(0)
            if step.provenance:
                steps.setdefault(step.provenance["fingerprint"], step)
            pending.extend(step.parents)
        return list(steps.values())

    def seed(self) -> int | None:
        """The seed of this step: the run's own seed for pretraining, or else the common seed."""
        params: dict[str, Any] = self.provenance["params"]
        if self.provenance["stage"] == "pretrain":
            params = params | (params.get(f"runs.{self.provenance['name']}") or {})
        return params.get("seed")


@dataclass
class TraceCache:
    """Links and digests that are computed once, because many artifacts share their inputs."""

    links: dict[Path, Link] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)
    codes: dict[tuple[str, ...], str] = field(default_factory=dict)
    lock: list[LockedStage] | None = None  # the stages in dvc.lock


def find_provenance(path: Path, root: Path) -> Path | None:
    """The provenance.json that describes a path, or None.

    The file lies in the folder `path`, beside the file `path`, or in a folder above, up to `root`.
    """
    start = path if path.is_dir() else path.parent
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
        if folder == root:
            break
    return None


def trace(path: Path, root: Path, cache: TraceCache | None = None) -> Link:
    """The lineage of an artifact, with every digest checked. Problems are listed, not raised.

    Args:
        path: absolute path of the artifact.
        root: absolute path of the project.
        cache: one object for all calls, where several artifacts are traced.
    """
    cache = cache or TraceCache()
    if path not in cache.links:
        cache.links[path] = _link(path, root, cache)
    return cache.links[path]


def _link(path: Path, root: Path, cache: TraceCache) -> Link:
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    if not path.exists():
        return Link(relative, {}, ["missing"])
    file = find_provenance(path, root)
    if file is None:
        made_here = relative.parts[:1] == (ARTIFACTS,)
        return Link(relative, {}, [f"no {FILE_NAME}: what made it is unknown"] if made_here else [])
    try:
        record = parse_json(file.read_bytes())
        made_by = _RECIPES.validate_python(record)  # its errors are ValueErrors
        _RECORDS.validate_python(record)
        problems = [*_changed_outputs(file.parent, record["outputs"])]
        _ = record["versions"]["torch"], record["device"]["type"]  # they are shown
    except (ValueError, KeyError, TypeError, AttributeError):
        return Link(relative, {}, [f"{FILE_NAME} is damaged: what made it is unknown"])
    if made_by.fingerprint != record["fingerprint"]:
        problems.append(f"{FILE_NAME} was edited: its fingerprint is that of other content")
    if cache.lock is None:
        cache.lock = read_lock(root)
    problems += differences(cache.lock, file.parent, made_by.params, root)
    modules = tuple(made_by.modules)
    if modules not in cache.codes:
        cache.codes[modules] = code_digest(modules, root)
    if made_by.code != cache.codes[modules]:
        problems.append(f"the code of stage {made_by.stage} has changed since")
    parents: dict[Path, Link] = {}
    for name, digest in made_by.inputs.items():
        source = absolute(root / name)
        input_file = find_provenance(source, root) if source.exists() else None
        artifact = input_file.parent if input_file else source  # several inputs may belong to one
        parents[artifact] = trace(artifact, root, cache)
        if source.exists() and source not in cache.digests:
            cache.digests[source] = tree_digest(source)
        if cache.digests.get(source, digest) != digest:
            problems.append(f"its input {name} has changed since (was sha256 {digest[:12]})")
    return Link(relative, record, problems, list(parents.values()))


def _changed_outputs(folder: Path, outputs: Mapping[str, str]) -> Iterator[str]:
    for name, digest in outputs.items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif file_digest(folder / name) != digest:
            yield f"{name} has changed since it was made (its sha256 differs)"


def summary(link: Link) -> str:
    """The steps of a lineage with their fingerprints in one line, the last step first."""
    texts = []
    for step in link.steps():
        made = step.provenance
        name = ":".join(filter(None, (made["stage"], made["name"])))
        texts.append(f"{name}@{made['fingerprint']}")
    return " < ".join(texts)
