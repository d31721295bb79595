"""No mask: the framework alone."""

from salmask.masks import Mask
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def none(pair: Pair, draws: Draws, grid: int) -> Masked:
    """The unmasked views."""
    return Masked(pair.query, pair.key)


MASK = Mask(none, label="no mask", query_only=lambda options: True)
