"""The entry of a run in `runs:`, laid over the common sections of params.yaml."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from salmask.errors import UserError
from salmask.params.mistakes import ParamsError, shown, unknown_key
from salmask.params.ranges import Seed
from salmask.params.values import Choice, check
from salmask.params.yaml_file import Params, to_choice

T = TypeVar("T")
RUN_SECTIONS = ("encoder", "view", "framework", "train", "mask")
REQUIRED_BY_DVC = ("tables", "sweeps", "imports", "transfer", "detect")  # even if empty
SECTIONS = (
    *("seed", "data", "localizer", "saliency", *RUN_SECTIONS, "runs", "probe"),
    *(*REQUIRED_BY_DVC, "evaluate"),
)
_KEY_OF_RUN = re.compile(rf"((?:{'|'.join(RUN_SECTIONS)})(?:\.[^:\s]+)?): ")


def run_section(params: Params, run: str, key: str, schema: type[T]) -> T:
    """The section `key` of a run as a `schema`. Raises UserError with the key and the value."""
    with in_run(params, run):
        return check(_merged(params, run, key), schema, key)


def run_choice(params: Params, run: str, key: str) -> Choice:
    """The section `key` (mask, framework) of a run as a name and its options. Raises UserError."""
    with in_run(params, run):
        return to_choice(_merged(params, run, key), key)


def run_seed(params: Params, run: str) -> int:
    """The seed of a run: its own, or the common one. Raises UserError."""
    entry, common = run_entry(params, run), params.seed()
    if "seed" not in entry:
        return common
    return check(entry["seed"], Seed, f"{params.source}: runs.{run}.seed")


def run_entry(params: Params, run: str) -> Mapping[str, Any]:
    """The entry of a run. Raises UserError for a key that is not a section of a run."""
    entry, where = params.raw(f"runs.{run}"), f"{params.source}: runs.{run}"
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: must be a mapping, got {shown(entry)}")
    known, lines = (*RUN_SECTIONS, "seed"), []
    for key, value in entry.items():
        if isinstance(value, list):  # DVC would take it for one run
            lines.append(
                f"{where}.{key}: a grid is expanded by `salmask suite NAME`: keep it in "
                "suites/NAME.yaml"
            )
        elif "." in str(key):
            section, _, rest = str(key).partition(".")
            lines.append(f"{where}.{key}: write it as `{section}: {{{rest}: {shown(value)}}}`")
        elif key not in known:
            lines.append(f"{where}.{key}: {unknown_key(key, known)}")
        elif key != "seed" and not isinstance(value, Mapping):
            lines.append(f"{where}.{key}: must be a mapping, got {shown(value)}")
    if lines:
        raise ParamsError(lines)
    return entry


@contextmanager
def in_run(params: Params, run: str) -> Iterator[None]:
    """Errors in the block that begin with a key of a run (`train.lr: `) name its place in
    params.yaml: the run's entry if it has the key, and otherwise the common section.

    Raises ParamsError instead of UserError. An error that is not about one value names the run too.
    """
    try:
        yield
    except UserError as error:
        several = isinstance(error, ParamsError)
        of_run = "" if several else f" (run {run})"
        texts = error.lines if isinstance(error, ParamsError) else (str(error),)
        raise ParamsError([_placed(params, run, text) + of_run for text in texts]) from None


def merge(common: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` laid over `common`, key by key, and likewise for nested mappings.

    A mapping with another `name` replaces the whole mapping, because options belong to the function
    that the name selects.
    """
    if "name" in override and override["name"] != common.get("name"):
        return dict(override)
    merged = dict(common)
    for key, value in override.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def _merged(params: Params, run: str, key: str) -> dict[str, Any]:
    """The common section with what is valid in the run's entry, which `run_entry` checks."""
    entry = params.raw(f"runs.{run}")
    own = entry.get(key) if isinstance(entry, Mapping) else None
    return merge(params.mapping(key), own if isinstance(own, Mapping) else {})


def _placed(params: Params, run: str, text: str) -> str:
    match = _KEY_OF_RUN.match(text)
    if match is None:
        return text if text.startswith(params.source) else f"{params.source}: runs.{run}: {text}"
    key, own = match[1], f"runs.{run}.{match[1]}"
    name = f"{key.partition('.')[0]}.name"
    other_name = params.has(f"runs.{run}.{name}") and (
        params.value(f"runs.{run}.{name}") != params.value(name)
    )  # the run replaces the whole section, see `merge`
    place = own if other_name or params.has(own) else key
    return f"{params.source}: {place}{text[len(key) :]}"
