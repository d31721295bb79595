"""Suites: params files in suites/ that may build on one another and hold grids of runs, and the
plain params.yaml that `salmask suite` makes of one.

`extends: NAME` (or a list, later ones winning) lays a suite over others; a run or table that is
null is taken out. Under `runs:`, a dotted key with a list of values (`train.lr: [0.01, 0.03]`) or
a list of seeds is an axis of a grid, which becomes one run for every combination.
"""

import hashlib
import itertools
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from salmask.errors import UserError
from salmask.params.names import CHOSEN, run_names
from salmask.params.overlay import merge
from salmask.params.yaml_file import Params

FOLDER = "suites"
ADVICE = "a grid is expanded by `salmask suite NAME`: keep it in suites/NAME.yaml"
_EXPECTED = ("tables", "sweeps", "imports", "transfer", "detect")  # by DVC, even if empty
_ORDER = (
    "seed", "data", "localizer", "saliency", "encoder", "view", "framework", "train", "mask",
    "runs", *_EXPECTED, "evaluate",
)  # fmt: skip
_HEADER = (
    "# suites/{name}.yaml, written by `salmask suite {name}`. What follows has sha256 {digest}\n"
)
_STYLE: Any = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True, "width": 100}
_FIRST_LINE = re.compile(r"# suites/(\S+)\.yaml, written by .* sha256 ([0-9a-f]{64})\n")


def names(root: Path) -> list[str]:
    """The suites of a project."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def load(root: Path, name: str) -> Params:
    """The suite `name` as plain parameters, complete and without grids. Raises UserError."""
    if name not in names(root):
        raise UserError(f"no suite `{name}`; there are: {', '.join(names(root))}")
    where = f"{FOLDER}/{name}.yaml"
    values = {**{key: {} for key in _EXPECTED}, **_read(root / FOLDER, name, ())}
    for key in ("runs", "tables"):
        if not isinstance(values.get(key), Mapping):
            raise UserError(f"{where}: {key}: must be a mapping, got {values.get(key)!r}")
        values[key] = {name: told for name, told in values[key].items() if told is not None}
    values["runs"], values["sweeps"] = expand(values["runs"], where)
    values = _chosen_by_run(values)
    return Params({key: values[key] for key in _ORDER if key in values} | values, where)


def _read(folder: Path, name: str, below: tuple[str, ...]) -> dict[str, Any]:
    """A suite laid over what it extends. below: the suites that led here."""
    if name in below:
        raise UserError(f"{FOLDER}/{name}.yaml extends itself: {' -> '.join((*below, name))}")
    own = dict(Params.read(folder / f"{name}.yaml").values)
    asked = own.pop("extends", [])
    bases = [asked] if isinstance(asked, str) else asked
    if not isinstance(bases, list):
        raise UserError(f"{FOLDER}/{name}.yaml: extends: must be a suite or several, got {asked!r}")
    values: dict[str, Any] = {}
    for base in bases:
        if not (folder / f"{base}.yaml").is_file():
            raise UserError(f"{FOLDER}/{name}.yaml: extends: there is no {FOLDER}/{base}.yaml")
        values = merge(values, _read(folder, base, (*below, name)))
    return merge(values, own)


# --------------------------------------------------------------------------------------- grids


def is_grid(entry: Any) -> bool:
    """Whether a run's entry stands for several runs."""
    return isinstance(entry, Mapping) and bool(_axes(entry))


def refuse_grids(params: Params) -> None:
    """Raises UserError for a params.yaml with a grid in it: DVC would see it as one run."""
    for name in run_names(params):
        if is_grid(params.raw(f"runs.{name}")):
            raise UserError(f"{params.source}: runs.{name}: {ADVICE}")


def expand(runs: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(one entry per run, what was swept). where: for messages. Raises UserError.

    The latter holds, per grid, the swept keys (seeds apart) and per setting of these the runs that
    repeat it over seeds: {grid: {keys: [...], settings: {setting: [run, ...]}}}. A run is called
    after its grid and, for every axis, the key's last part and the value: blur-lr-0p03-seed-1.
    """
    found: dict[str, Any] = {}
    sweeps: dict[str, Any] = {}
    for name, entry in runs.items():
        members = _grid(name, entry, where) if is_grid(entry) else [(name, name, entry)]
        for setting, run, own in members:
            if run in found:
                told = f"two runs would be called {run}; name one of them otherwise"
                raise UserError(f"{where}: {told}")
            found[run] = own
            if is_grid(entry):
                keys = [key for key in _axes(entry) if key != "seed"]
                swept = sweeps.setdefault(name, {"keys": keys, "settings": {}})
                swept["settings"].setdefault(setting, []).append(run)
    return found, sweeps


def _grid(name: str, entry: Mapping[str, Any], where: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(setting, run, its entry) for every combination of a grid's values."""
    axes = _axes(entry)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            told = f"runs.{name}.{key}: must be a list of values, got {values!r}"
            raise UserError(f"{where}: {told}")
    plain = {key: value for key, value in entry.items() if key not in axes}
    seeds = axes.pop("seed", None)
    found = []
    for values in itertools.product(*axes.values()):
        setting, run = name, plain
        for key, value in zip(axes, values, strict=True):
            setting += f"-{_named(key, value, axes)}"
            run = _with(run, key.split("."), value)
        if seeds is None:
            found.append((setting, setting, run))
        else:
            found += [(setting, f"{setting}-seed-{_slug(s)}", run | {"seed": s}) for s in seeds]
    return found


def _axes(entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in entry.items() if "." in str(key)}
    return found | ({"seed": entry["seed"]} if isinstance(entry.get("seed"), list) else {})


def _with(entry: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The entry with the value at a path, nothing written in place."""
    first, *rest = path
    below = entry.get(first)
    inner = _with(below if isinstance(below, Mapping) else {}, rest, value) if rest else value
    return {**entry, first: inner}


def _named(key: str, value: Any, axes: Mapping[str, Any]) -> str:
    last = key.rpartition(".")[2]
    alike = [other for other in axes if other.rpartition(".")[2] == last]
    return f"{_slug(key if len(alike) > 1 else last)}-{_slug(value)}"


def _slug(value: Any) -> str:
    """A value in a-z, 0-9 and -: 0.05 is 0p05, [0.4, 0.7] is 0p4-0p7, -1 is m1, null is none."""
    if isinstance(value, Mapping):
        return "-".join(f"{_slug(key)}-{_slug(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "-".join(_slug(item) for item in value)
    text = str(value).lower()
    if isinstance(value, float | int):
        text = text.replace("+", "").replace("-", "m").replace(".", "p")
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _chosen_by_run(values: dict[str, Any]) -> dict[str, Any]:
    """A grid or setting under evaluate.chosen stands for its runs; what is not there, for none.

    A protocol of `evaluate.protocols` that has a stage of its own is chosen for all that there is.
    """
    evaluate = values.get("evaluate") or {}
    everywhere = evaluate.get("protocols") or []
    chosen = {name: [] for name in CHOSEN} | (evaluate.get("chosen") or {})
    everything = [*values["runs"], *(values.get("imports") or {})]
    several = members(values["sweeps"])
    named = {
        protocol: everything
        if protocol in everywhere
        else [run for name in runs or [] for run in several.get(name, [name])]
        for protocol, runs in chosen.items()
    }
    common = [protocol for protocol in everywhere if protocol not in CHOSEN]
    return {**values, "evaluate": {**evaluate, "protocols": common, "chosen": named}}


def members(sweeps: Mapping[str, Any]) -> dict[str, list[str]]:
    """Grids and their settings -> their runs."""
    found: dict[str, list[str]] = {}
    for grid, swept in sweeps.items():
        found[grid] = [run for runs in swept["settings"].values() for run in runs]
        found |= swept["settings"]
    return found


# -------------------------------------------------------------------------------------- in place


class _Plain(yaml.SafeDumper):
    """Writes equal parts twice rather than as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def put(root: Path, name: str, validate: Callable[[Params], None]) -> str:
    """Puts a suite in place of params.yaml once it has passed every check; what became of it, for
    a person. validate: raises UserError for what does not fit; so does this for edits by hand that
    would be lost."""
    params = load(root, name)
    validate(params)
    target = root / "params.yaml"
    edits = subprocess.run(
        ["git", "status", "--porcelain", target.name], cwd=root, capture_output=True, text=True
    )
    if edits.stdout.strip() and not is_untouched(target.read_text()):
        raise UserError("params.yaml has uncommitted edits that this would overwrite: commit them")
    target.write_text(text(name, params))
    runs = len(run_names(params))
    return f"params.yaml is now {params.source} ({runs} runs); go on with `dvc repro`"


def text(name: str, params: Params) -> str:
    """What params.yaml holds once the suite is in place; its first line tells edits by hand."""
    body = yaml.dump(dict(params.values), Dumper=_Plain, **_STYLE)
    return _HEADER.format(name=name, digest=_digest(body)) + body


def is_untouched(written: str) -> bool:
    """Whether a params.yaml is still what `salmask suite` wrote, so that nothing of it is lost."""
    first = _FIRST_LINE.match(written)
    return first is not None and first[2] == _digest(written[first.end() :])


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
