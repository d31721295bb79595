"""Values from a file -> checked values, by a dataclass or by a function's keyword-only arguments.

Errors name where, which key, which value, and what is allowed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.dataclasses import dataclass

from salmask.errors import UserError

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Choice:
    """A section that picks a function by name and hands it options."""

    name: str
    options: Mapping[str, Any]


def check(value: Any, schema: type[T], where: str) -> T:
    """`value` as a `schema`. Raises UserError: where, which key, which value, what is allowed."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        raise UserError(_explain(error, where, _allowed(schema))) from None


def bind(function: Callable[..., Any], choice: Choice, where: str) -> dict[str, Any]:
    """Checks a choice's options against a function's keyword-only arguments.

    Returns those arguments, defaults filled in. Raises UserError as `check` does.
    """
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    model = create_model("options", __config__=STRICT, **fields)
    try:
        checked = model.model_validate(dict(choice.options))
    except ValidationError as error:
        where = f"{where} (name: {choice.name})"
        raise UserError(_explain(error, where, _allowed(model))) from None
    return {name: getattr(checked, name) for name in fields}


def _allowed(schema: Any) -> str:
    """The keys of a schema, for a message."""
    fields = getattr(schema, "__pydantic_fields__", None)
    return f" (allowed: {', '.join(fields)})" if fields else ""


def _explain(error: ValidationError, where: str, allowed: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        got = "" if item["type"] == "missing" else f", got {item['input']!r}"
        if item["type"] == "value_error":  # ours, already a sentence
            told = str(item["ctx"]["error"])
            lines.append(f"{key}: {told}" if key else told)
        elif item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"{key}: no such key{got}{allowed}")
        else:
            lines.append(f"{key}: {item['msg']}{got}" if key else f"{item['msg']}{got}")
    return f"{where}: " + "; ".join(lines)
