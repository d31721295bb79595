"""The named masks: what a run's `mask:` does to the views, and with which frameworks.

A mask is a function (pair, draws, grid, *, options) -> Masked; its keyword-only arguments are what
params.yaml may set. To add one, write it and enter it in MASKS. A mask that learns is a module
instead (adios.py). Pixel constants are for views of 224 px and scale with the view.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from typing import Any

from torch import Tensor

from salmask.errors import UserError
from salmask.filters import high_pass, scaled, scaled_kernel
from salmask.masks import guided, mixing
from salmask.masks.adios import Masker
from salmask.masks.mscn import mscn
from salmask.params.values import Choice, bind, pick
from salmask.params.view import ViewConfig
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair, Views, Wiring


def none(pair: Pair, draws: Draws, grid: int) -> Masked:
    """The framework alone."""
    return Masked(pair.query, pair.key)


MASKS: dict[str, Callable[..., Any]] = {
    "none": none,
    "high_pass": guided.high_pass,
    "blur": guided.blur,
    "mean": guided.mean,
    "mscn": mscn,
    "adios": Masker,
    "mixmask": mixing.mixmask,
    "unmix": mixing.unmix,
    "mixmask_star": mixing.mixmask_star,
    "erase": mixing.erase,
}
WITHOUT_SALIENCY = ("none", "mscn", "adios", "mixmask", "unmix", "mixmask_star", "erase")
LEARNED = ("adios",)  # modules, not functions
FILTERED = {"high_pass": high_pass, "mscn": high_pass}  # whose encoder needs that for ever
PUBLISHED = {  # the masks that do not go with every framework
    "mscn": ("moco v2", "simclr", "byol"),
    "adios": ("moco v2", "simclr", "byol", "simsiam"),
}


@dataclass(frozen=True)
class Strategy:
    """A mask made ready for a framework. views: (pair, draws, shuffle) -> what the framework
    trains on. reads_saliency: whether pairs must carry activation maps. extra_views: how many
    further views pairs must carry. masker: the part that learns, if one does."""

    views: Callable[[Pair, Draws, Tensor], Views]
    reads_saliency: bool
    extra_views: int
    masker: Masker | None = None


def options_of(choice: Choice, where_from: str = "mask") -> dict[str, Any]:
    """The mask's options, checked, defaults filled in. Raises UserError."""
    found = pick(MASKS, choice, where_from)
    options = bind(found.__init__ if choice.name in LEARNED else found, choice, where_from)
    guided.refuse_unguided_negatives(options, where_from)
    return options


def function_of(choice: Choice, where_from: str = "mask") -> Callable[..., Masked]:
    """(pair, draws, grid) -> Masked, for a mask that does not learn. Raises UserError."""
    options = options_of(choice, where_from)  # first: it says which masks there are
    return partial(MASKS[choice.name], **options)


def reads_saliency(choice: Choice) -> bool:
    """Whether a mask looks at activation maps."""
    return choice.name not in WITHOUT_SALIENCY and options_of(choice).get("where", "") != "random"


def build(choice: Choice, wiring: Wiring, view: ViewConfig, where_from: str = "mask") -> Strategy:
    """The mask that params chose, ready for a framework. Raises UserError for options that do not
    fit, and for a mask that does not go with the framework."""
    options = options_of(choice, where_from)
    _refuse(choice.name, options, wiring, where_from)
    if choice.name in LEARNED:
        masker = Masker(view.size, wiring, **options)
        return Strategy(masker.views, reads_saliency=False, extra_views=0, masker=masker)
    mask = function_of(choice, where_from)
    shared = options.get("share_view", False)
    return Strategy(
        partial(_views, mask, wiring, view.grid),
        reads_saliency(choice),
        0 if shared else options.get("extra_views", 0),
    )


def _refuse(name: str, options: dict[str, Any], wiring: Wiring, where_from: str) -> None:
    if options.get("hard_negative") is not None and not wiring.hard_negatives:
        raise UserError(
            f"{where_from} (name: {name}): a hard negative is pushed away, and {wiring.name} "
            "pushes nothing away; add `hard_negative: null`"
        )
    if name in PUBLISHED and wiring.name not in PUBLISHED[name]:
        raise UserError(
            f"{where_from} (name: {name}): defined for {', '.join(PUBLISHED[name])}; no paper says "
            f"how its views meet under {wiring.name}"
        )


def _views(
    mask: Callable[[Pair, Draws, int], Masked],
    wiring: Wiring,
    grid: int,
    pair: Pair,
    draws: Draws,
    shuffle: Tensor,
) -> Views:
    """Which of the masked views are compared with which."""
    first = mask(pair, draws, grid)
    if first.extra:
        everything = (first.query, first.key, *first.extra)
        return Views(everything, _all_pairs(len(everything), wiring.roles), shuffle)
    turns = [first]
    if wiring.roles == "both":
        turns.append(mask(pair.swapped(), draws.fork("other way"), grid))
    images: list[Tensor] = []
    pairs: list[tuple[int, int, float]] = []
    negatives: dict[int, tuple[Tensor, ...]] = {}
    for turn in turns:
        query, key = _place(turn.query, images), _place(turn.key, images)
        pairs.append((query, key, wiring.weight))
        if turn.negatives:
            negatives[key] = turn.negatives
    return Views(tuple(images), tuple(pairs), shuffle, negatives, first.mixed)


def _place(view: Tensor, images: list[Tensor]) -> int:
    """Where a view stands among the images; it is added unless it is there."""
    for place, known in enumerate(images):
        if known is view:
            return place
    images.append(view)
    return len(images) - 1


def _all_pairs(count: int, roles: str) -> tuple[tuple[int, int, float], ...]:
    """Every comparison of `count` views that a framework knows, equally weighed to a sum of 1."""
    if roles == "query":
        found = [(online, 1) for online in range(count) if online != 1]
    else:
        found = list((combinations if roles == "pairs" else permutations)(range(count), 2))
    return tuple((online, target, 1 / len(found)) for online, target in found)


def input_filter(choice: Choice, side: int) -> dict[str, Any] | None:
    """The filter that an encoder trained with this mask expects on every input of `side` px: its
    name and its resolved kernel and sigma in px, or None."""
    if choice.name not in FILTERED:
        return None
    options = options_of(choice)
    if not options.get("filtered", True):
        return None
    return {
        "name": "high_pass",
        "kernel": scaled_kernel(options["kernel"], side),
        "sigma": scaled(options["sigma"], side),
    }
