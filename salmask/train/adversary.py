"""Adversarial training of a mask that learns: one step after each step of the encoder."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salmask.distributed import all_reduce_mean
from salmask.masks import LearnedMask
from salmask.train.batches import Batch


class Adversary:
    """A masker and its optimizer."""

    def __init__(self, masker: LearnedMask) -> None:
        self.masker = masker
        self.optimizer = torch.optim.SGD(
            masker.parameters(),
            masker.lr,
            momentum=masker.momentum,
            weight_decay=masker.weight_decay,
        )

    def step(
        self,
        framework: Any,
        batch: Batch,
        share: float,
        precision: AbstractContextManager[object] | None = None,
    ) -> dict[str, Tensor]:
        """One step of the masker; the framework stays as it is.

        Args:
            framework: see `salmask.frameworks`.
            batch: the batch of the encoder's step.
            share: of the masker's learning rate, 0 to 1.
            precision: context for the forward pass of the framework. Masks are computed in float32.

        Returns:
            `masker_loss` and the masker's other metrics of this process, without gradients.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.masker.lr
        with frozen(framework):
            with precision or nullcontext():
                metrics = self.masker.loss(framework.losses, batch.pair, batch.draws, batch.shuffle)
            self.optimizer.zero_grad(set_to_none=True)
            metrics["masker_loss"].backward()
        all_reduce_mean([p.grad for p in self.masker.parameters() if p.grad is not None])
        self.optimizer.step()
        return {name: value.detach() for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"masker": self.masker.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masker.load_state_dict(state["masker"])
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A context in which the parameters of a module get no gradients, and its batch norms use the
    statistics of the batch without updating the running ones. Gradients reach its inputs."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
