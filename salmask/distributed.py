"""What a process of a training knows of the others: who it is, and everybody's rows in order.

Without a process group there is one process, and nothing is sent.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def own(rows: Tensor) -> Tensor:
    """This process's share of the rows of a global batch: (B, ...) -> (B / world, ...)."""
    return rows.tensor_split(world())[rank()]


def gather(rows: Tensor) -> Tensor:
    """Everybody's rows (b, ...) in the order of ranks: (B, ...). No gradient."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`; the gradient of every process's loss flows back to the rows' owner."""
    if world() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        total = gradient[0].clone(memory_format=torch.contiguous_format)  # others may read it yet
        dist.all_reduce(total)
        return own(total)
