"""The options of a mask in params.yaml, and what follows from them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from salmask.errors import UserError
from salmask.masks import MASKS
from salmask.params.values import Choice, bind, pick
from salmask.shapes import Masked


def options_of(choice: Choice, where: str = "mask") -> dict[str, Any]:
    """The checked options of a mask, with defaults filled in.

    Args:
        choice: name and options of the mask.
        where: place of the choice in params.yaml, for messages.

    Raises UserError for an unknown mask and for options that do not fit.
    """
    mask = pick(MASKS, choice.name, f"{where}.name")
    function = mask.function.__init__ if mask.learns else mask.function
    options = bind(function, choice.options, where)
    try:
        mask.check(options)
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None
    return options


def function_of(choice: Choice, where: str = "mask") -> Callable[..., Masked]:
    """(pair, draws, grid) -> Masked, for a mask that does not learn. Raises UserError."""
    options = options_of(choice, where)
    return partial(MASKS[choice.name].function, **options)


def reads_saliency(choice: Choice) -> bool:
    """Whether a mask needs activation maps. Raises UserError."""
    options = options_of(choice)
    return MASKS[choice.name].reads_saliency(options)


def input_filter(choice: Choice, side: int) -> dict[str, Any] | None:
    """The filter that an encoder trained with this mask needs on every input of `side` px.

    Returns its name, and its kernel and sigma in px; None for no filter. Raises UserError.
    """
    options = options_of(choice)
    return MASKS[choice.name].input_filter(options, side)
