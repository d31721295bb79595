"""params.yaml: reading values and sections, with a record of every key that was read.

Sections with fixed fields are dataclasses in the other modules of this package. Sections that
select something by `name` (data, localizer, mask, framework) take the keyword-only arguments of the
selected function as their schema (see `values.bind`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from salmask.errors import UserError
from salmask.params.values import Choice, check

T = TypeVar("T")
_MISSING = object()
_NAME = re.compile(r"[a-z0-9-]+")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C: ten times faster than Python


def load_yaml(text: str) -> Any:
    """The value of a YAML text, which may hold plain data only. Raises YAMLError."""
    return yaml.load(text, Loader=_LOADER)


class Params:
    """The values of params.yaml. `reads` holds every dotted key that was read, with its value."""

    def __init__(self, values: Mapping[str, Any], source: str = "params.yaml") -> None:
        self.values = values
        self.source = source
        self.reads: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> "Params":
        """Reads a file. Raises UserError when it is missing or is not a YAML mapping."""
        try:
            values = load_yaml(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} not found: run from the project's folder") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must be a mapping of sections, not {type(values).__name__}")
        return cls(values, str(path))

    def raw(self, key: str) -> Any:
        """The value at a dotted key. Raises UserError when the key is missing."""
        value = self.value(key, _MISSING)
        if value is _MISSING:
            raise UserError(f"{self.source}: `{key}` is missing")
        self.reads[key] = value
        return value

    def value(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, or the default. `reads` does not record it."""
        value: Any = self.values
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    def section(self, key: str, schema: type[T]) -> T:
        """The section at `key` as a `schema`. Raises UserError with the key and the value."""
        return check(self.raw(key), schema, where=f"{self.source}: {key}")

    def mapping(self, key: str) -> Mapping[str, Any]:
        """The mapping at `key`. Raises UserError when it is not a mapping."""
        value = self.raw(key)
        if not isinstance(value, Mapping):
            raise UserError(f"{self.source}: {key}: must be a mapping, got {value!r}")
        return value

    def names(self, key: str) -> list[str]:
        """The keys of the mapping at `key`, in order. Raises UserError for a name that cannot be
        used in DVC's paths and keys."""
        names = list(self.mapping(key))
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise UserError(
                    f"{self.source}: {key}.{name}: a name is made of a-z, 0-9 and -, since DVC "
                    "uses it in paths and keys"
                )
        return names

    def choice(self, key: str) -> Choice:
        """The section at `key` as a name and its options. Raises UserError."""
        return to_choice(self.raw(key), f"{self.source}: {key}")

    def seed(self) -> int:
        """The common seed."""
        return self.section("seed", int)


def to_choice(value: Any, where: str) -> Choice:
    """A mapping with a `name` as a Choice. Raises UserError for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{where}: must be a mapping with a `name`, got {value!r}")
    return Choice(value["name"], {key: val for key, val in value.items() if key != "name"})
