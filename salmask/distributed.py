"""What a process of a training knows of the others: who it is, and everybody's rows in order.

Without a process group there is one process, and nothing is sent.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def world_size() -> int:
    """How many processes share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rows(rows: Tensor) -> Tensor:
    """This process's share of the rows of a global batch: (B, ...) -> (B / world, ...)."""
    return rows.tensor_split(world_size())[rank()]


def local_batches(rows: Tensor, batch: int) -> Tensor:
    """This process's share of rows (n, ...), in order and in whole batches: each batch is one that
    a single process would make, so that what is computed of it is the same to the bit."""
    number = torch.arange(len(rows)) // batch
    return rows[torch.isin(number, local_rows(number.unique()))]


def gather(rows: Tensor) -> Tensor:
    """Everybody's rows (b, ...) in the order of ranks: (B, ...). No gradient."""
    if world_size() == 1:
        return rows
    parts = [
        torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())
    ]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_uneven(rows: Tensor) -> Tensor:
    """As `gather`, of processes that may have different numbers of rows, or none."""
    if world_size() == 1:
        return rows
    counts = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    parts = gather(torch.cat([rows, padding])).tensor_split(world_size())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`; the gradient of every process's loss flows back to the rows' owner."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over all processes, in place and in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def mean_weight(count: Tensor) -> Tensor:
    """What a mean over this process's `count` () things must be multiplied by, for the average over
    processes to be the mean over everybody's things: 1 where all have as many."""
    if world_size() == 1:
        return torch.ones_like(count, dtype=torch.float32)
    total = count.clone()
    dist.all_reduce(total)
    return count * world_size() / total.clamp(min=1)


def gather_objects(items: list[T]) -> list[T]:
    """The items of all processes, in the order of ranks."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def all_reduce_max(number: int) -> int:
    """The highest that any process says; all get the same answer."""
    if world_size() == 1:
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    said = torch.tensor(number, device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return int(said)


def broadcast_from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made)
    found: T = made[0]
    return found


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over all processes. Buffers are its own business."""
    if world_size() == 1:
        return module
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():  # its successor is not in all the versions that we take
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        total = gradient[0].clone(memory_format=torch.contiguous_format)  # others may read it yet
        dist.all_reduce(total)
        return local_rows(total)
