"""Validation of values from params.yaml, by a dataclass or by a function's keyword-only arguments.

Every error names the place, the key, the value and what is allowed.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.dataclasses import dataclass

from salmask.params.mistakes import ParamsError, did_you_mean, explain

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Choice:
    """A section that selects a function by `name` and passes it `options`."""

    name: str
    options: Mapping[str, Any]


def check(value: Any, schema: type[T], where: str) -> T:
    """Converts `value` to `schema`. Raises UserError with place, key, value and what is allowed."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        raise explain(error, value, schema, where) from None


def bind(
    function: Callable[..., Any], options: Mapping[str, Any], where: str, also: Any = None
) -> dict[str, Any]:
    """Validates options against the keyword-only arguments of a function.

    Args:
        function: its keyword-only arguments are the schema.
        options: what was given.
        where: file and key of the options.
        also: a dataclass whose fields are further options.

    Returns all options, with defaults filled in. Raises UserError as `check` does.
    """
    model, types = _options_model(function, also)
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        raise explain(error, options, types, where) from None
    return {name: getattr(checked, name) for name in model.model_fields}


@cache
def _options_model(
    function: Callable[..., Any], also: Any
) -> tuple[type[BaseModel], dict[str, Any]]:
    """A pydantic model of the keyword-only arguments of a function and the fields of a dataclass,
    and their types."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if also is not None:
        hints = get_type_hints(also, include_extras=True)
        fields |= {field.name: (hints[field.name], field.default) for field in fields_of(also)}
    types = {name: kind for name, (kind, _) in fields.items()}
    return create_model("options", __config__=STRICT, **fields), types


def pick(table: Mapping[str, T], name: str, where: str) -> T:
    """The entry of `table` with a name. Raises UserError with the names of all entries."""
    if name not in table:
        known = f"choose from {', '.join(table)}{did_you_mean(name, table)}"
        raise ParamsError([f"{where}: no `{name}` here; {known}"])
    return table[name]
