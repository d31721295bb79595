"""Un-Mix (Shen et al. 2022): queries are blended with other images, or show a box of them."""

from salmask.masks import Mask
from salmask.masks.mixing import mixture, reversed_rows, unmix_weight
from salmask.params.ranges import Share
from salmask.randomness import Draws
from salmask.shapes import Masked, Pair


def unmix(pair: Pair, draws: Draws, grid: int, *, global_p: Share = 0.5) -> Masked:
    """The query is mixed with the batch in reverse order. Shen et al. 2022.

    Args:
        global_p: probability of a blend of whole images instead of a box; 0 on ImageNet when
            Un-Mix is used alone.
    """
    weight = unmix_weight(draws, pair.query, global_p)
    mixed = mixture(pair.query, reversed_rows(pair.query), weight)
    return Masked(pair.query, pair.key, mixed=(mixed,))


MASK = Mask(
    unmix,
    label="Un-Mix",
    uneven_patches=True,
    extra_passes=lambda options: 1,
    kinds={"blend": {"global_p": 1.0}, "box": {"global_p": 0.0}},
)
