"""Batch norm over groups of samples."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GroupedBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of consecutive groups of `group` samples.

    What MoCo gets from one process per GPU, on any number of devices: a query cannot find its key
    by the statistics that the two share. The running statistics average over groups, and stay
    alone while `track_running_stats` is False. In eval mode it is ordinary batch norm, and its
    state is that of `nn.BatchNorm2d`.
    """

    def __init__(self, features: int, group: int = 0, affine: bool = True) -> None:
        super().__init__(features, affine=affine)
        self.group = group  # 0: the whole batch is one group

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,...) -> (B,C,...). Raises ValueError in training when groups do not divide B."""
        if not self.training or not self.group or len(x) == self.group:
            return super().forward(x)
        if len(x) % self.group:
            raise ValueError(f"a batch of {len(x)} does not split into groups of {self.group}")
        # one call on groups folded into channels copies twice: slower, by 3 in channels_last
        parts = [self._normalised(part) for part in x.split(self.group)]
        if self.track_running_stats:
            self._update([stats for _, stats in parts])
        return torch.cat([out for out, _ in parts])

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do, as one class stands for BatchNorm1d and 2d."""

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One group, and its mean and unbiased variance (2,C)."""
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision has float statistics
        stats = torch.zeros(2, x.shape[1], dtype=wide, device=x.device)
        out = F.batch_norm(x, stats[0], stats[1], self.weight, self.bias, True, 1.0, self.eps)
        return out, stats

    @torch.no_grad()
    def _update(self, stats: list[Tensor]) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, variance = torch.stack(stats).mean(dim=0)
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


def group_norms(module: nn.Module, group: int) -> nn.Module:
    """Makes every batch norm of a module one over groups of `group` samples; in place.

    Of `nn.BatchNorm1d`, `nn.BatchNorm2d` and what is grouped already. Only how they compute
    changes: tensors, eps, momentum, mode and hooks stay. Returns the module.
    """
    for layer in module.modules():
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, GroupedBatchNorm):
            layer.__class__ = GroupedBatchNorm  # a new object would have to copy all of that
            layer.group = group  # type: ignore[assignment]
    return module
