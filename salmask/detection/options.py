"""The options of a detector's training, `detect.<name>.training` in params.yaml."""

from collections.abc import Mapping
from typing import Any

from salmask.detection.protocol import run
from salmask.detection.recipes import REPLACEABLE, DetectorRecipe, resolved
from salmask.errors import UserError
from salmask.params.values import bind_options


def training_options(given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], DetectorRecipe]:
    """The options of `protocol.run`, and the recipe that they resolve to.

    Args:
        given: the section.
        where: the place of the section, for messages.

    Raises:
        UserError: an option is missing or has a wrong value, or there is no such recipe.
    """
    options = bind_options(run, given, where)
    changes = {key: options[key] for key in REPLACEABLE}
    try:
        return options, resolved(options["recipe"], options["scale_lr"], **changes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
