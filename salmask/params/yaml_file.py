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
from salmask.params.mistakes import ParamsError, shown
from salmask.params.ranges import Seed
from salmask.params.values import Choice, check
from salmask.params.yaml_lines import LOADER, repeated_keys

T = TypeVar("T")
_MISSING = object()
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_MAX_NAME = 100  # characters: DVC and the folder of runs join several names in one file name
NAME_RULE = (
    f"a name is made of a-z, 0-9 and -, does not begin with -, and has at most {_MAX_NAME} "
    "characters, because DVC uses it in paths, keys and command lines"
)


def load_yaml(text: str) -> Any:
    """The value of a YAML text, which may hold plain data only. Raises YAMLError."""
    return yaml.load(text, Loader=LOADER)


class Params:
    """The values of params.yaml. `reads` holds every dotted key that was read, with its value."""

    def __init__(self, values: Mapping[str, Any], source: str = "params.yaml") -> None:
        self.values = values
        self.source = source
        self.reads: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path = Path("params.yaml")) -> "Params":
        """Reads a file. Raises UserError when it is missing, is not a YAML mapping in UTF-8, or has
        a key twice."""
        try:
            text = path.read_text(encoding="utf-8")
            values, repeated = load_yaml(text), repeated_keys(text)
        except FileNotFoundError:
            raise UserError(f"{path} not found: run from the project's folder") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UserError(f"{path}{line} is not valid YAML: {error.problem}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is not valid YAML: {reason}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must be a mapping of sections, got {shown(values)}")
        if repeated:
            raise ParamsError(
                [
                    f"{path}, line {line}: {key}: it is there already, in line {earlier}; "
                    "rename or remove one of them"
                    for key, line, earlier in repeated
                ]
            )
        return cls(values, str(path))

    def raw(self, key: str) -> Any:
        """The value at a dotted key. Raises UserError when the key is missing."""
        value = self.value(key, _MISSING)
        if value is _MISSING:
            raise UserError(f"{self.source}: {key}: is missing")
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

    def has(self, key: str) -> bool:
        """Whether there is a value, or null, at a dotted key."""
        return self.value(key, _MISSING) is not _MISSING

    def section(self, key: str, schema: type[T]) -> T:
        """The section at `key` as a `schema`. Raises UserError with the key and the value."""
        return check(self.raw(key), schema, where=f"{self.source}: {key}")

    def mapping(self, key: str) -> Mapping[str, Any]:
        """The mapping at `key`. Raises UserError when it is not a mapping."""
        value = self.raw(key)
        if not isinstance(value, Mapping):
            raise UserError(f"{self.source}: {key}: must be a mapping, got {shown(value)}")
        return value

    def names(self, key: str) -> list[str]:
        """The keys of the mapping at `key`, in order. Raises UserError for a name that cannot be
        used in DVC's paths, keys and command lines."""
        names = list(self.mapping(key))
        refused = [name for name in names if not is_name(name)]
        if refused:
            raise ParamsError([f"{self.source}: {key}.{name}: {NAME_RULE}" for name in refused])
        return names

    def choice(self, key: str) -> Choice:
        """The section at `key` as a name and its options. Raises UserError."""
        return to_choice(self.raw(key), f"{self.source}: {key}")

    def seed(self) -> int:
        """The common seed."""
        return self.section("seed", Seed)


def to_choice(value: Any, where: str) -> Choice:
    """A mapping with a `name` as a Choice. Raises UserError for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ParamsError([f"{where}: must be a mapping with a `name`, got {shown(value)}"])
    return Choice(value["name"], {str(key): val for key, val in value.items() if key != "name"})


def is_name(value: Any) -> bool:
    """Whether DVC can use a value in paths, keys and command lines."""
    return isinstance(value, str) and len(value) <= _MAX_NAME and bool(_NAME.fullmatch(value))
