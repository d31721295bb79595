"""The options of a detector's training, from a section under `detect` in params.yaml."""

from typing import Any

from salmask.detection.protocol import run
from salmask.detection.recipes import REPLACEABLE, DetectorRecipe, resolved
from salmask.errors import UserError
from salmask.params.values import Choice, bind, option_names


def training_options(choice: Choice, where: str) -> tuple[dict[str, Any], DetectorRecipe]:
    """The options of `protocol.run` in a section, and the recipe that they resolve to.

    The section also has the options of the data set, which `configured_reader` checks.

    Args:
        choice: the section.
        where: the place of the section, for messages.

    Raises:
        UserError: an option is missing or has a wrong value, or there is no such recipe.
    """
    names = option_names(run)
    given = {key: value for key, value in choice.options.items() if key in names}
    options = bind(run, Choice(choice.name, given), where)
    changes = {key: options[key] for key in REPLACEABLE}
    try:
        return options, resolved(options["recipe"], options["scale_lr"], **changes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
