"""Validation of values from params.yaml, by a dataclass or by a function's keyword-only arguments.

Every error names the place, the key, the value and what is allowed.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.dataclasses import dataclass

from salmask.errors import UserError

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")
Range = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]
PerView = float | tuple[float, float]  # one number for both views, or [query, key]


def _check_shares(value: float | Range) -> float | Range:
    low, high = bounds = value if isinstance(value, tuple) else (value, value)
    if not 0 <= low <= high <= 1:
        wanted = "[low, high]" if isinstance(value, tuple) else "a share"
        shown = list(bounds) if isinstance(value, tuple) else value
        raise ValueError(f"must be {wanted} from 0 to 1, got {shown}")
    return value


ShareRange = Annotated[Range, AfterValidator(_check_shares)]
ShareOrRange = Annotated[float | Range, AfterValidator(_check_shares)]


@dataclass(frozen=True, config=STRICT)
class Choice:
    """A section that selects a function by `name` and passes it `options`."""

    name: str
    options: Mapping[str, Any]


def check(value: Any, schema: type[T], where: str) -> T:
    """Converts `value` to `schema`. Raises UserError with place, key, value and allowed keys."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        raise UserError(_explain(error, where, _allowed(schema))) from None


def bind(function: Callable[..., Any], choice: Choice, where: str) -> dict[str, Any]:
    """`bind_options` for the options of a choice. Errors contain the name of the choice."""
    return bind_options(function, choice.options, f"{where} (name: {choice.name})")


def bind_options(
    function: Callable[..., Any], options: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Validates options against the keyword-only arguments of a function.

    Returns all of these arguments, with defaults filled in. Raises UserError as `check` does.
    """
    model = _options_model(function)
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        raise UserError(_explain(error, where, _allowed(model))) from None
    return {name: getattr(checked, name) for name in model.model_fields}


@cache
def _options_model(function: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the keyword-only arguments of a function."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model("options", __config__=STRICT, **fields)


def pick(table: Mapping[str, T], choice: Choice, where: str) -> T:
    """The entry of `table` that `choice` names. Raises UserError with the names of all entries."""
    if choice.name not in table:
        raise UserError(f"{where}: no `{choice.name}` here; choose from {', '.join(table)}")
    return table[choice.name]


def _allowed(schema: Any) -> str:
    """The keys of a schema, for an error message."""
    fields = getattr(schema, "__pydantic_fields__", None)
    return f" (allowed: {', '.join(fields)})" if fields else ""


def _explain(error: ValidationError, where: str, allowed: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        got = "" if item["type"] == "missing" else f", got {item['input']!r}"
        if item["type"] == "value_error":  # raised by our own validators
            message = str(item["ctx"]["error"])
            lines.append(f"{key}: {message}" if key else message)
        elif item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"{key}: no such key{got}{allowed}")
        else:
            lines.append(f"{key}: {item['msg']}{got}" if key else f"{item['msg']}{got}")
    return f"{where}: " + "; ".join(lines)
