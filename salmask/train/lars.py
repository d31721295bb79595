"""LARS, the optimizer of large batches (You et al. 2017)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step follows each parameter's own size (You et al. 2017).

    With gradient g and decay wd, as in SimCLR, BYOL and Barlow Twins:
    g <- g + wd p; buffer <- momentum buffer + trust g; p <- p - lr buffer, where trust is
    eta |p| / |g| (of the decayed g) if neither norm is 0, else 1.

    A parameter group with `adapt: False` gets neither decay nor trust: biases and norm weights.
    Everything stays on the device. Keeps one buffer per parameter, of its shape and dtype.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"eta": eta, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for the parameters that have a gradient; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params if p.grad is not None]
            if group["adapt"]:
                grads = _adapted(params, grads, group["weight_decay"], group["eta"])
            buffers = [self._buffer(p) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
        return loss

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _adapted(
    params: list[Tensor], grads: list[Tensor], weight_decay: float, eta: float
) -> list[Tensor]:
    """Gradients with decay, times each parameter's trust; new tensors of the same shapes."""
    grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    sizes = torch.stack(list(torch._foreach_norm(params)))
    slopes = torch.stack(list(torch._foreach_norm(grads)))
    # where instead of if: asking for a norm would make the host wait for the device
    trust = torch.where((sizes > 0) & (slopes > 0), eta * sizes / slopes, 1.0)
    torch._foreach_mul_(grads, list(trust.unbind()))
    return grads
