"""Which of the masked views a framework compares."""

from collections.abc import Callable
from itertools import combinations, permutations

from torch import Tensor

from salmask.randomness import Draws
from salmask.shapes import Masked, Pair, Views, Wiring


def wire(
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
