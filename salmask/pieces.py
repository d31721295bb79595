"""Work on the images of a batch a few at a time, and only on those that need it."""

from collections.abc import Callable

import torch
from torch import Tensor

# Values of a piece: 2 MiB of float32. Smaller pieces fit better into the cache, but then the cost
# of each call counts. Three images of 224 px, or 42 of 64 px, were the fastest.
PIECE = 1 << 19


def in_pieces(function: Callable[..., Tensor], images: Tensor, *others: Tensor) -> Tensor:
    """`function(images, *others)`, computed for a few images at a time on a CPU.

    What a function computes on its way stays in the cache for a few images, but not for a batch.
    Other devices compute the whole batch at once.

    Args:
        function: of tensors, to a tensor. Row i of its result depends on the rows i of its
            arguments only.
        images: (B, ...). A piece has `PIECE` of its values, and at least one row.
        others: (B, ...) each.

    Returns the same values for any size of the pieces, up to rounding.
    """
    batch = (images, *others)
    rows = max(1, PIECE // max(1, images[0].numel()))
    if images.device.type != "cpu" or len(images) <= rows:
        return function(*batch)
    result = None
    for start in range(0, len(images), rows):
        part = function(*(tensor[start : start + rows] for tensor in batch))
        if result is None:
            result = part.new_empty((len(images), *part.shape[1:]))
        result[start : start + rows] = part
    assert result is not None
    return result


def change_chosen(
    images: Tensor,
    chosen: Tensor,
    change: Callable[..., Tensor],
    *batch: Tensor,
    overwrite: bool = False,
) -> Tensor:
    """`change(*batch)` for the chosen images, and the others as they are: (B,C,H,W).

    A CPU computes the change for chosen images only. Other devices compute it for all: to select
    images, the host would have to wait for the device.

    Args:
        images: (B,C,H,W).
        chosen: (B,) bool.
        change: of tensors, to (B,C,H,W), as for `in_pieces`.
        batch: (B, ...) each.
        overwrite: whether the result may be written into `images`, which saves a copy.
    """
    if images.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], change(*batch), images)
    flags = chosen.tolist()
    if all(flags):
        return change(*batch)
    if not any(flags):
        return images
    rows = chosen.nonzero()[:, 0]
    changed = change(*(tensor.index_select(0, rows) for tensor in batch))
    return (images if overwrite else images.clone()).index_copy_(0, rows, changed)
