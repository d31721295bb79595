"""Mistakes in params.yaml in words: the place, the key, the value and what is allowed."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from salmask.errors import UserError
from salmask.params.yaml_lines import with_lines

_MAX_SHOWN = 120  # characters of a value
_RUN = re.compile(r" \(run ([^()]+)\)$")
_FILES = (".json", ".yaml", ".yml")
_WORDS = {str: "a text", bool: "true or false", Path: "a path", int: "a whole number"}


class ParamsError(UserError):
    """One or more mistakes in the values of a file, each a line of its own."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


def full_message(error: UserError) -> str:
    """The message of an error for the terminal, with the lines of params.yaml that it is about."""
    text = with_lines(str(error))
    count = len(error.lines) if isinstance(error, ParamsError) else 1
    return f"{count} mistakes:\n{text}" if count > 1 else text


class Collector:
    """Collects the mistakes of a file, so that all of them are reported at once."""

    def __init__(self) -> None:
        self._runs: dict[str, list[str]] = {}  # line -> the runs that it is about

    @contextmanager
    def part(self) -> Iterator[None]:
        """Continues after a UserError in the block, and collects it."""
        try:
            yield
        except UserError as error:
            for line in error.lines if isinstance(error, ParamsError) else [str(error)]:
                run = _RUN.search(line)
                runs = self._runs.setdefault(_RUN.sub("", line), [])
                if run and run[1] not in runs:
                    runs.append(run[1])

    def stop_if_any(self) -> None:
        """Raises what was collected."""
        lines = [
            f"{line} (run{'s' * (len(runs) > 1)} {shorten(runs)})" if runs else line
            for line, runs in self._runs.items()
        ]
        if lines:
            raise ParamsError(lines)


def shorten(names: Sequence[str], most: int = 5) -> str:
    """Some of the names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """` (did you mean ...?)` with the nearest known names; "" without any."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=3)
    return f" (did you mean {' or '.join(f'`{one}`' for one in close)}?)" if close else ""


def unknown_key(key: object, known: Sequence[str]) -> str:
    """The text for a key that does not exist."""
    allowed = f"allowed: {', '.join(known)}" if known else "there are no options"
    return f"no such key{did_you_mean(key, known)}; {allowed}"


def shown(value: Any) -> str:
    """A value as YAML shows it, on one line."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # keys that JSON lacks, or a value in itself
        text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def explain(error: ValidationError, given: Any, schema: Any, where: str) -> ParamsError:
    """The mistakes that pydantic reports.

    Args:
        error: what pydantic raised.
        given: the value that was checked.
        schema: its type: any type, or the types of fields by name.
        where: file and key of the value.
    """
    lines: dict[str, None] = {}
    for item in error.errors():
        path, kind, value = _descend(schema, given, item["loc"])
        place, last = _place(where, *path), item["loc"][-1] if item["loc"] else ""
        known = _fields(kind)
        text = f"must be {describe(kind)}, got {shown(value)}"
        if item["type"] == "missing" and last in known:
            place, text = _place(place, last), f"is missing: {describe(known[last])}"
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            place, text = _place(place, last), unknown_key(last, list(known))
        elif item["type"] == "value_error":  # raised by our own validators
            reason = str(item["ctx"]["error"])
            first, _, rest = reason.partition(" ")
            if first in known:  # it names the field that is wrong
                place, text = _place(place, first), rest
            else:
                text = reason if known else f"{text}: {reason}"
        lines[f"{place}: {text}"] = None
    return ParamsError(list(lines))


def _place(where: str, *keys: Any) -> str:
    """A place and a key in it; `where` may be a file."""
    if not keys:
        return where
    key = ".".join(map(str, keys))
    return f"{where}: {key}" if where.endswith(_FILES) else f"{where}.{key}"


def describe(kind: Any) -> str:
    """What a type accepts, in words."""
    limits: dict[str, Any] = {}
    while get_origin(kind) is Annotated:
        kind, *metadata = get_args(kind)
        for entry in metadata:
            if getattr(entry, "description", None):
                return str(entry.description)
            for part in getattr(entry, "metadata", ()):
                limits |= {
                    name: getattr(part, name)
                    for name in ("gt", "ge", "lt", "le", "min_length")
                    if getattr(part, name, None) is not None
                }
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (int, float):
        return _number("a whole number" if kind is int else "a number", limits)
    if origin in (Union, UnionType):
        return " or ".join("null" if a is NoneType else describe(a) for a in arguments)
    if origin is Literal:
        return _alternatives([f"`{shown(value).strip(chr(34))}`" for value in arguments])
    if origin is tuple and arguments[-1] is ...:
        many = "one or more values" if limits.get("min_length") else "values"
        return f"a list of {many}, each {describe(arguments[0])}"
    if origin is tuple:
        return _list_of([describe(argument) for argument in arguments])
    if origin in (list, set):
        return f"a list of values, each {describe(arguments[0])}"
    if origin in (dict, Mapping) or is_dataclass(kind) or isinstance(kind, Mapping):
        keys = f" with the keys {', '.join(_fields(kind))}" if _fields(kind) else ""
        return f"a mapping{keys}"
    return _WORDS.get(kind, "a value")


def _number(noun: str, limits: Mapping[str, Any]) -> str:
    low = f"above {limits['gt']:g}" if "gt" in limits else ""
    low = f"of at least {limits['ge']:g}" if "ge" in limits else low
    high = f"below {limits['lt']:g}" if "lt" in limits else ""
    if "le" in limits and "ge" in limits:
        return f"{noun} from {limits['ge']:,} to {limits['le']:,}".replace(
            f"{10**9:,}", "1 billion"
        )
    high = f"at most {limits['le']:g}" if "le" in limits else high
    return " ".join([noun, " and ".join(part for part in (low, high) if part)]).strip()


def _list_of(parts: Sequence[str]) -> str:
    if len(set(parts)) == 1:
        return f"a list of {len(parts)} values, each {parts[0]}"
    return f"a list of {len(parts)} values: {', '.join(parts)}"


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if names[1:] else names[0]


def _fields(kind: Any) -> dict[Any, Any]:
    """The types of the fields of a schema, by name; empty if it has none."""
    if isinstance(kind, Mapping):
        return dict(kind)
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _descend(schema: Any, given: Any, path: Sequence[Any]) -> tuple[list[str], Any, Any]:
    """Follows a path of pydantic through mappings and their fields, as far as a user has to know.

    Returns the keys, the type and the value that were reached.
    """
    keys: list[str] = []
    for part in path:
        inner = _without_null(schema)
        known = _fields(inner)
        if part in known:
            kind = known[part]
        elif get_origin(inner) in (dict, Mapping) and isinstance(given, Mapping) and part in given:
            kind = get_args(inner)[1]
        else:
            break
        if not isinstance(given, Mapping) or part not in given:
            break
        keys, schema, given = [*keys, str(part)], kind, given[part]
    if _fields(_without_null(schema)) and isinstance(given, Mapping):
        schema = _without_null(schema)
    return keys, schema, given


def _without_null(kind: Any) -> Any:
    """The type without `Annotated`, and without `None` as the only alternative."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        others = [argument for argument in get_args(kind) if argument is not NoneType]
        return _without_null(others[0]) if len(others) == 1 else kind
    return kind
