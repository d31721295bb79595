"""Metrics on their way from the device to the host."""

from collections.abc import Mapping

import torch
from torch import Tensor

from salmask.distributed import reduce_max, world_size


class Reading:
    """The metrics of a step, and a number that all processes agree on.

    The copy to the host starts at once, but only `read` waits for it. If `read` follows the launch
    of the next step, the device always has work while the host waits.

    Args:
        step: number of finished steps.
        metrics: scalar tensors, equal in all processes.
        number: of this process, from 0 to 2^24.
    """

    def __init__(self, step: int, metrics: Mapping[str, Tensor], number: int) -> None:
        self.step, self.names, self.number = step, list(metrics), number
        values = torch.stack([value.detach() for value in metrics.values()])
        if world_size() > 1:
            largest = torch.tensor([number], dtype=values.dtype)
            largest = largest.to(values.device, non_blocking=True)
            reduce_max(largest)
            values = torch.cat([values, largest])
        self.values = values.to("cpu", non_blocking=True)  # page-locked memory if from CUDA
        self.copied = torch.cuda.Event() if values.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def read(self) -> tuple[dict[str, float], int]:
        """The metrics, and the largest number of all processes. Waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        values = self.values.tolist()
        number = int(values.pop()) if world_size() > 1 else self.number
        return dict(zip(self.names, values, strict=True)), number
