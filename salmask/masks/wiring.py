"""A mask wired to a framework: which of the masked views the framework compares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

from torch import Tensor

from salmask.errors import UserError
from salmask.masks import MASKS, LearnedMask
from salmask.masks.options import options_of
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair, Views, Wiring


@dataclass(frozen=True)
class WiredMask:
    """A mask with its options, wired to one framework.

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


def wire_mask(choice: Choice, wiring: Wiring, view: ViewConfig, where: str = "mask") -> WiredMask:
    """The mask of a run, wired to the run's framework.

    Args:
        choice: name and options of the mask.
        wiring: of the framework.
        view: size and grid of the views.
        where: place of the choice in params.yaml, for messages.

    Raises UserError for options that do not fit, for a mask that is not defined for the framework,
    and for a grid that does not divide the view, if the mask needs this.
    """
    options, mask = options_of(choice, where), MASKS[choice.name]
    if view.size % view.grid and not mask.uneven_patches:
        raise UserError(
            f"view.grid: {view.grid} does not divide view.size ({view.size}): patches of the mask "
            f"{choice.name} must have equal sizes in whole px"
        )
    if mask.hard_negatives(options) and not wiring.hard_negatives:
        raise UserError(
            f"{where}.hard_negative: {wiring.label} has no negatives, so it cannot use hard "
            "negatives; add `hard_negative: null`"
        )
    if wiring.classes:
        if not mask.query_only(options):
            raise UserError(
                f"{where}.name: {wiring.label} compares no views and trains on the query alone, so "
                "it needs a mask that changes the query only: `none`, or `high_pass`, `blur`, "
                "`mean` with `masked: query, hard_negative: null`, or `mscn` with `key_ratio: "
                "null, extra_views: 0`"
            )
    elif mask.frameworks and not (wiring.published and wiring.framework in mask.frameworks):
        raise UserError(
            f"{where}.name: no paper defines {choice.name} for {wiring.label}; it is defined for "
            f"the published form of {', '.join(mask.frameworks)}"
        )
    saliency, extra_views = mask.reads_saliency(options), mask.extra_views(options)
    if mask.learns:
        masker: LearnedMask = mask.function(view.size, wiring, **options)
        return WiredMask(masker.views, saliency, extra_views, masker)
    views = partial(masked_views, partial(mask.function, **options), wiring, view.grid)
    return WiredMask(views, saliency, extra_views)


def masked_views(
    mask: Callable[[Pair, Draws, int], Masked],
    wiring: Wiring,
    grid: int,
    pair: Pair,
    draws: Draws,
    shuffle: Tensor,
) -> Views:
    """The masked views of a pair and their comparisons.

    A mask with further views compares all of them. Otherwise the query is compared with the key;
    frameworks with the roles `both` also compare the masked key view with the query view.

    Args:
        mask: a mask with its options.
        wiring: of the framework.
        grid: patches per side.
        pair: unmasked views.
        draws: random numbers of the batch.
        shuffle: see `Views`.
    """
    masked = mask(pair, draws, grid)
    if masked.extra:
        images = (masked.query, masked.key, *masked.extra)
        return Views(images, _all_comparisons(len(images), wiring.roles), shuffle)
    directions = [masked]
    if wiring.roles == "both":
        directions.append(mask(pair.swapped(), draws.fork("other way"), grid))
    unique: list[Tensor] = []  # each view once, so that it is embedded once
    pairs: list[tuple[int, int, float]] = []
    negatives: dict[int, tuple[Tensor, ...]] = {}
    for direction in directions:
        query, key = _index(direction.query, unique), _index(direction.key, unique)
        pairs.append((query, key, wiring.weight))
        if direction.negatives:
            negatives[key] = direction.negatives
    return Views(tuple(unique), tuple(pairs), shuffle, negatives, masked.mixed)


def _index(view: Tensor, images: list[Tensor]) -> int:
    """The index of a view in `images`; appends the view if it is not there."""
    for index, image in enumerate(images):
        if image is view:
            return index
    images.append(view)
    return len(images) - 1


def _all_comparisons(count: int, roles: str) -> tuple[tuple[int, int, float], ...]:
    """All comparisons of `count` views that a framework makes, with equal weights of sum 1."""
    if roles == "query":
        pairs = [(online, 1) for online in range(count) if online != 1]
    else:
        pairs = list((combinations if roles == "pairs" else permutations)(range(count), 2))
    return tuple((online, target, 1 / len(pairs)) for online, target in pairs)
