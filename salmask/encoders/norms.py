"""Batch norm over groups of samples, or over the whole batch of all processes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.distributed import all_reduce_mean, gather, world_size


class GroupedBatchNorm(_BatchNorm):
    """Batch norm with separate training statistics for consecutive groups of `group` samples.

    MoCo needs groups so that shared batch statistics do not reveal the key of a query; there, each
    GPU is a group. Running statistics are the means over groups, and do not change while
    `track_running_stats` is False. Group 0 is the whole batch of all processes. In eval mode this
    is ordinary batch norm. Its state has the names of `nn.BatchNorm2d`.
    """

    def __init__(self, features: int, group: int = 0, affine: bool = True) -> None:
        super().__init__(features, affine=affine)
        self.group = group  # 0: the whole batch, of all processes, is one group

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,...) -> (B,C,...), where B is the batch of this process.

        In training with group 0, all processes must call it together.

        Raises ValueError in training when the group size does not divide B.
        """
        if self.training and not self.group and world_size() > 1:
            return self._synchronised(x)
        if not self.training or not self.group or len(x) == self.group:
            return super().forward(x)
        if len(x) % self.group:
            raise ValueError(f"a batch of {len(x)} cannot be split into groups of {self.group}")
        # faster than one call with groups as channels, which copies twice
        parts = [self._normalised(part) for part in x.split(self.group)]
        if self.track_running_stats:
            self._update([stats for _, stats in parts])
        return torch.cat([out for out, _ in parts])

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions: the class replaces BatchNorm1d and BatchNorm2d."""

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One group, and its mean and unbiased variance (2,C)."""
        wide = torch.promote_types(
            x.dtype, torch.float32
        )  # statistics of half precision are float32
        stats = torch.zeros(2, x.shape[1], dtype=wide, device=x.device)
        out = F.batch_norm(x, stats[0], stats[1], self.weight, self.bias, True, 1.0, self.eps)
        return out, stats

    def _synchronised(self, x: Tensor) -> Tensor:
        """Normalises the batch of this process with the statistics of all processes."""
        out: Tensor
        out, stats = _Synchronised.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._update([stats])
        return out

    @torch.no_grad()
    def _update(self, stats: list[Tensor]) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, variance = torch.stack(stats).mean(dim=0)
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


class _Synchronised(torch.autograd.Function):
    """Batch norm of x (B,C,...) with the statistics of all processes. Torch's supports GPUs only.

    Gradients are those of the sum of the losses of all processes: complete for x; for weight and
    bias the part of this process, as for every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The output, and the mean and unbiased variance (2,C) over all processes."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = torch.var_mean(wide, _all_but_channels(x), correction=0)
        own = torch.full_like(parts[0], x.numel() // x.shape[1])
        variances, means, counts = gather(torch.stack([*parts, own])[None]).unbind(1)  # (world,C)
        count = counts.sum(dim=0)
        shares = counts / count  # processes may have different numbers of samples
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        stats = torch.stack([mean, variance * (count / (count - 1))])
        ctx.mark_non_differentiable(stats)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        column = (-1, *[1] * (x.dim() - 2))  # shape that broadcasts (C,) over x
        normal = (x - mean.view(column)) * scale.view(column)
        gradient = gradients[0].to(normal.dtype)
        dims = _all_but_channels(x)
        sums = torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])  # (2,C)
        by_bias, by_weight = sums.clone()
        all_reduce_mean([sums])
        by_mean, by_scale = sums * (world_size() / count)
        centred = gradient - by_mean.view(column) - normal * by_scale.view(column)
        if weight is None:
            return (centred * scale.view(column)).to(x.dtype), None, None, None
        return (centred * (scale * weight).view(column)).to(x.dtype), by_weight, by_bias, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def own_norms(module: nn.Module) -> nn.Module:
    """Replaces every grouped batch norm of a module by one over the batch of its process.

    Changes the module in place, as `group_norms` does, and returns it.
    """
    for layer in module.modules():
        if type(layer) is GroupedBatchNorm:
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return module


def group_norms(module: nn.Module, group: int = 0) -> nn.Module:
    """Replaces every batch norm of a module by one over groups of `group` samples.

    Applies to `nn.BatchNorm1d`, `nn.BatchNorm2d` and grouped batch norms. Changes the module in
    place and returns it. Tensors, eps, momentum, mode and hooks stay the same.
    """
    for layer in module.modules():
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, GroupedBatchNorm):
            layer.__class__ = GroupedBatchNorm  # keeps tensors, mode and hooks
            layer.group = group  # type: ignore[assignment]
    return module
