"""Work on the images of a batch a few at a time, and only on those that need it."""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 1 << 18  # values of a piece: 1 MiB of float32, of which several fit into a core's cache


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


def choose(
    condition: Tensor,
    yes: Callable[..., Tensor],
    no: Callable[..., Tensor],
    *batch: Tensor,
) -> Tensor:
    """`yes(*batch)` for the images where the condition is True, `no(*batch)` for the others.

    A CPU computes each function for its own images only. Other devices compute both for all
    images: to select images, the host would have to wait for the condition.

    Args:
        condition: (B,) bool.
        yes, no: functions of tensors, to (B,C,H,W), as for `in_pieces`.
        batch: (B, ...) each.
    """
    if condition.device.type != "cpu":
        return torch.where(condition[:, None, None, None], yes(*batch), no(*batch))
    chosen = condition.tolist()
    if all(chosen):
        return yes(*batch)
    if not any(chosen):
        return no(*batch)
    parts = []
    for function, which in ((yes, condition), (no, ~condition)):
        rows = which.nonzero()[:, 0]
        parts.append((rows, function(*(tensor.index_select(0, rows) for tensor in batch))))
    result = parts[0][1].new_empty((len(condition), *parts[0][1].shape[1:]))
    for rows, part in parts:
        result.index_copy_(0, rows, part)
    return result
