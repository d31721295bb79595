"""LARS, an optimizer for large batches (You et al. 2017)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """SGD with momentum and a step size for each parameter, relative to its norm (You et al. 2017).

    With gradient g and decay wd, as in SimCLR, BYOL and Barlow Twins:
    g <- g + wd p; buffer <- momentum buffer + trust g; p <- p - lr buffer, where trust is
    eta |p| / |g| (g with decay) if both norms are positive, else 1.

    A parameter group with `adapt: False` (biases and norm weights) has neither decay nor trust.
    The host never waits for the device. There is one buffer per parameter, of its shape and dtype.
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
        """One step for the parameters that have a gradient. Returns the value of `closure`."""
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
    """Gradients with decay, times the trust of each parameter; new tensors of the same shapes."""
    grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    weight_norms = torch.stack(list(torch._foreach_norm(params)))
    grad_norms = torch.stack(list(torch._foreach_norm(grads)))
    # `if` would make the host wait for the device
    positive = (weight_norms > 0) & (grad_norms > 0)
    trust = torch.where(positive, eta * weight_norms / grad_norms, 1.0)
    torch._foreach_mul_(grads, list(trust.unbind()))
    return grads
