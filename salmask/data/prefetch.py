"""Batches on their way from worker processes to the device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on_device(batches: Iterable[T], device: torch.device) -> Iterator[T]:
    """Copies batches to a device. With CUDA, the copy of the next batch runs beside the
    computation with the current one, on a stream of its own.

    Args:
        batches: as for `map_tensors`, in page-locked memory if the device is a GPU.
        device: of the copies.
    """

    def copied(batch: T) -> T:
        return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)

    if device.type != "cuda":
        yield from map(copied, batches)
        return
    stream, iterator = torch.cuda.Stream(device), iter(batches)

    def copy_next() -> T | None:
        batch = next(iterator, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return copied(batch)

    def keep(tensor: Tensor) -> Tensor:
        """Keeps the memory of a tensor until the current stream has used it."""
        tensor.record_stream(torch.cuda.current_stream(device))
        return tensor

    following = copy_next()
    while following is not None:
        torch.cuda.current_stream(device).wait_stream(stream)
        batch = map_tensors(keep, following)
        following = copy_next()  # before the computation, which the host launches after this yield
        yield batch


def map_tensors(function: Callable[[Tensor], Tensor], batch: T) -> T:
    """A batch with a function applied to each of its tensors.

    Args:
        function: returns the new tensor.
        batch: a tensor, or a list, tuple, dict or dataclass of batches; anything else stays as it
            is.
    """
    result: Any = batch
    if isinstance(batch, Tensor):
        result = function(batch)
    elif isinstance(batch, list | tuple):
        result = type(batch)(map_tensors(function, part) for part in batch)
    elif isinstance(batch, dict):
        result = {name: map_tensors(function, part) for name, part in batch.items()}
    elif is_dataclass(batch) and not isinstance(batch, type):
        parts = {f.name: map_tensors(function, getattr(batch, f.name)) for f in fields(batch)}
        result = replace(batch, **parts)
    return result
