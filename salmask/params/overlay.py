"""The entry of a run in `runs:`, laid over the common sections of params.yaml."""

from collections.abc import Mapping
from typing import Any, TypeVar

from salmask.errors import UserError
from salmask.params.values import Choice, check
from salmask.params.yaml_file import Params, to_choice

T = TypeVar("T")
RUN_SECTIONS = ("encoder", "view", "framework", "train", "mask")
REQUIRED_BY_DVC = ("tables", "sweeps", "imports", "transfer", "detect")  # even if empty
SECTIONS = (
    *("seed", "data", "localizer", "saliency", *RUN_SECTIONS, "runs", "probe"),
    *(*REQUIRED_BY_DVC, "evaluate"),
)


def run_section(params: Params, run: str, key: str, schema: type[T]) -> T:
    """The section `key` of a run as a `schema`. Raises UserError with the key and the value."""
    return check(_merged(params, run, key), schema, f"{params.source}: runs.{run} over {key}")


def run_choice(params: Params, run: str, key: str) -> Choice:
    """The section `key` (mask, framework) of a run as a name and its options. Raises UserError."""
    return to_choice(_merged(params, run, key), f"{params.source}: runs.{run} over {key}")


def run_seed(params: Params, run: str) -> int:
    """The seed of a run: its own, or the common one. Raises UserError."""
    seed = run_entry(params, run).get("seed", params.seed())
    return check(seed, int, f"{params.source}: runs.{run}.seed")


def run_entry(params: Params, run: str) -> Mapping[str, Any]:
    """The entry of a run. Raises UserError for a key that is not a section of a run."""
    entry, where = params.raw(f"runs.{run}") or {}, f"{params.source}: runs.{run}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: must be a mapping, got {entry!r}")
    for key, value in entry.items():
        if key not in (*RUN_SECTIONS, "seed"):
            allowed = ", ".join((*RUN_SECTIONS, "seed"))
            raise UserError(f"{where}.{key} is not a section of a run; allowed: {allowed}")
        if key != "seed" and not isinstance(value, Mapping):
            raise UserError(f"{where}.{key}: must be a mapping, got {value!r}")
    return entry


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
    return merge(params.mapping(key), run_entry(params, run).get(key, {}))
