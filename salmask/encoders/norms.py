"""Batch norm over groups of samples, or over the whole batch of all processes."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.distributed import all_reduce_mean, gather, world_size

_SMALL_GROUP = 1 << 22  # elements; below, a GPU takes longer to launch kernels than to copy groups


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
        out, stats = self._in_groups(x)
        if self.track_running_stats:
            self._update(stats)
        return out

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions: the class replaces BatchNorm1d and BatchNorm2d."""

    def _in_groups(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output (B,C,...), and means and unbiased variances of the groups (2,G,C)."""
        if torch.compiler.is_compiling():  # the compiler fuses the loop
            return normalise_by_loop(x, self.group, self.weight, self.bias, self.eps)
        if x.is_cuda and x[: self.group].numel() < _SMALL_GROUP:
            return normalise_in_one_call(x, self.group, self.weight, self.bias, self.eps)
        out, stats = _Grouped.apply(x, self.weight, self.bias, self.group, self.eps)
        return out, stats

    def _synchronised(self, x: Tensor) -> Tensor:
        """Normalises the batch of this process with the statistics of all processes."""
        out: Tensor
        if not x.is_cuda:
            out, stats = _Synchronised.apply(x, self.weight, self.bias, self.eps)
        else:  # momentum 1 replaces the statistics, so that these are those of the batch
            stats = torch.zeros(2, x.shape[1], device=x.device)
            out = SyncBatchNorm.apply(
                x, self.weight, self.bias, *stats, self.eps, 1.0, dist.group.WORLD, world_size()
            )
        if self.track_running_stats:
            self._update(stats[:, None])
        return out

    @torch.no_grad()
    def _update(self, stats: Tensor) -> None:
        """stats: means and unbiased variances of the groups (2,G,C)."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, variance = stats.mean(dim=1)
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


def normalise_by_loop(
    x: Tensor, group: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm of each group of samples: the slow reference of `GroupedBatchNorm`.

    Args:
        x: (B,C,...).
        group: samples per group; divides B.
        weight: (C,), or None.
        bias: (C,), or None.
        eps: see `nn.BatchNorm2d`.

    Returns the output (B,C,...), and means and unbiased variances of the groups (2,G,C), which are
    at least float32.
    """
    parts, stats = [], []
    for part in x.split(group):
        own = x.new_zeros(2, x.shape[1], dtype=_wide(x))
        parts.append(F.batch_norm(part, own[0], own[1], weight, bias, True, 1.0, eps))
        stats.append(own)
    return torch.cat(parts), torch.stack(stats, dim=1)


def normalise_in_one_call(
    x: Tensor, group: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As `normalise_by_loop`, with the groups as further channels: few kernels, but two copies."""
    count, channels = len(x) // group, x.shape[1]
    stats = x.new_zeros(2, count * channels, dtype=_wide(x))
    wide = x.unflatten(0, (count, group)).movedim(0, 1)  # (group,G,C,...)
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    wide = wide.flatten(1, 2).contiguous(memory_format=layout)
    weights, biases = (None if p is None else p.repeat(count) for p in (weight, bias))
    out = F.batch_norm(wide, stats[0], stats[1], weights, biases, True, 1.0, eps)
    out = out.unflatten(1, (count, channels)).movedim(1, 0).flatten(0, 1)
    return out.contiguous(memory_format=layout), stats.view(2, count, channels)


class _Grouped(torch.autograd.Function):
    """As `normalise_by_loop`, but each group is written to its place in the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(x)
        # mean and unbiased variance; mean and reciprocal of the standard deviation
        stats, saved = x.new_zeros(2, 2, len(x) // group, x.shape[1], dtype=_wide(x))
        for i, (part, place) in enumerate(zip(x.split(group), out.split(group), strict=True)):
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, stats[0, i], stats[1, i], True, 1.0, eps,
                out=place, save_mean=saved[0, i], save_invstd=saved[1, i],
            )  # fmt: skip
        ctx.mark_non_differentiable(stats)
        ctx.save_for_backward(x, weight, saved)
        ctx.group, ctx.eps = group, eps
        return out, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, saved = ctx.saved_tensors
        own, parameters = torch.empty_like(x), torch.zeros_like(saved)
        wanted = [ctx.needs_input_grad[0], weight is not None, weight is not None]
        parts = zip(x.split(ctx.group), gradients[0].split(ctx.group), strict=True)
        for i, (part, gradient) in enumerate(parts):
            of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, part, weight, None, None, saved[0, i], saved[1, i], True, ctx.eps, wanted
            )
            if wanted[0]:
                own[i * ctx.group : (i + 1) * ctx.group] = of_input
            if wanted[1]:
                parameters[0, i], parameters[1, i] = of_weight, of_bias
        of_weight, of_bias = parameters.sum(dim=1) if wanted[1] else (None, None)
        return own if wanted[0] else None, of_weight, of_bias, None, None


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of statistics: float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


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


def without_statistics(module: nn.Module) -> nn.Module:
    """Stops the batch norms of a module from updating their running statistics.

    For modules that are only used in training mode. Changes the module in place and returns it.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
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
