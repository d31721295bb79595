"""Rank, world size, and ordered gathering across processes.

Without a process group there is one process, and all functions return their input.
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
    """The number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rows(rows: Tensor) -> Tensor:
    """This process's part of the rows of a global batch: (B, ...) -> (B / world, ...)."""
    return rows.tensor_split(world_size())[rank()]


def local_batches(rows: Tensor, batch: int) -> Tensor:
    """This process's part of the rows (n, ...), in order and in whole batches.

    Each batch is one that a single process would form, so results are equal to the bit.

    Args:
        rows: (n, ...), the rows of all processes.
        batch: rows per batch.
    """
    number = torch.arange(len(rows)) // batch
    return rows[torch.isin(number, local_rows(number.unique()))]


def gather(rows: Tensor) -> Tensor:
    """The rows (b, ...) of all processes, in rank order: (B, ...). No gradient."""
    if world_size() == 1:
        return rows
    parts = [
        torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())
    ]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_uneven(rows: Tensor) -> Tensor:
    """As `gather`, for processes with different numbers of rows, or none."""
    if world_size() == 1:
        return rows
    counts = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    parts = gather(torch.cat([rows, padding])).tensor_split(world_size())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`, with a gradient: the sum over the losses of all processes."""
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
    """The weight of a mean over `count` () items of this process: () float32.

    The average over processes of weighted means is the mean over the items of all processes. The
    weight is 1 when all processes have equally many.
    """
    if world_size() == 1:
        return torch.ones_like(count, dtype=torch.float32)
    total = count.clone()
    dist.all_reduce(total)
    return count * world_size() / total.clamp(min=1)


def gather_objects(items: list[T]) -> list[T]:
    """The items of all processes, in rank order."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def all_reduce_max(number: int) -> int:
    """The maximum of a number over all processes."""
    if world_size() == 1:
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    maximum = torch.tensor(number, device=device)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def reduce_max(tensor: Tensor) -> None:
    """Replaces each element by its maximum over all processes, in place. With NCCL, the host does
    not wait."""
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def broadcast_from_first(make: Callable[[], T]) -> T:
    """The result of `make` in the first process, in all processes."""
    if world_size() == 1:
        return make()
    results: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(results)
    result: T = results[0]
    return result


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over all processes. Buffers are not synchronised.

    Gradients are views of the messages, which saves a copy. `static_graph` is not set: it saves the
    search for unused parameters, which `find_unused_parameters=False` already leaves out, and would
    read one number per parameter on the host in every step.
    """
    if world_size() == 1:
        return module
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():  # the replacement is not in all supported versions
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        total = gradient[0].clone(
            memory_format=torch.contiguous_format
        )  # the gradient may be shared
        dist.all_reduce(total)
        return local_rows(total)
