"""A mask made ready for a framework."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from salmask.errors import UserError
from salmask.masks import MASKS, LearnedMask, Mask
from salmask.masks.options import options_of
from salmask.masks.wiring import wire
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.shapes import Pair, Views, Wiring


@dataclass(frozen=True)
class ReadyMask:
    """A mask with its options, for one framework.

    Args:
        views: (pair, draws, shuffle) -> the views that the framework trains on.
        reads_saliency: whether pairs must carry activation maps.
        extra_views: number of further views that pairs must carry.
        masker: the module of a mask that learns.
    """

    views: Callable[[Pair, Draws, Tensor], Views]
    reads_saliency: bool
    extra_views: int
    masker: LearnedMask | None = None


def build(choice: Choice, wiring: Wiring, view: ViewConfig, where: str = "mask") -> ReadyMask:
    """The mask of a run, ready for the run's framework.

    Args:
        choice: name and options of the mask.
        wiring: of the framework.
        view: size and grid of the views.
        where: place of the choice in params.yaml, for messages.

    Raises UserError for options that do not fit, for a mask that is not defined for the framework,
    and for a grid that does not divide the view, if the mask needs this.
    """
    options = options_of(choice, where)
    mask = MASKS[choice.name]
    if view.size % view.grid and not mask.uneven_patches:
        raise UserError(
            f"{where} (name: {choice.name}): view.grid: {view.grid} does not divide view.size "
            f"({view.size}): patches of this mask must have equal sizes in whole px"
        )
    if mask.hard_negatives(options) and not wiring.hard_negatives:
        raise UserError(
            f"{where} (name: {choice.name}): {wiring.label} has no negatives, so it cannot use "
            "hard negatives; add `hard_negative: null`"
        )
    if wiring.classes and not mask.query_only(options):
        raise UserError(
            f"{where} (name: {choice.name}): {wiring.label} compares no views and trains on the "
            "query alone, so it needs a mask that changes the query only: `none`, or `high_pass`, "
            "`blur`, `mean` with `masked: query, hard_negative: null`, or `mscn` with "
            "`key_ratio: null, extra_views: 0`"
        )
    if not wiring.classes:
        _check_framework(mask, wiring, f"{where} (name: {choice.name})")
    saliency, extra_views = mask.reads_saliency(options), mask.extra_views(options)
    if mask.learns:
        masker: LearnedMask = mask.function(view.size, wiring, **options)
        return ReadyMask(masker.views, saliency, extra_views, masker)
    views = partial(wire, partial(mask.function, **options), wiring, view.grid)
    return ReadyMask(views, saliency, extra_views)


def _check_framework(mask: Mask, wiring: Wiring, where: str) -> None:
    if mask.frameworks is None:
        return
    if wiring.framework not in mask.frameworks or not wiring.published:
        raise UserError(
            f"{where}: no paper defines this mask for {wiring.label}; it is defined for the "
            f"published form of {', '.join(mask.frameworks)}"
        )
