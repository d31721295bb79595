"""Everything that changes while a run trains, and one step of it; equal in all processes."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salmask import frameworks
from salmask.devices import autocast, place
from salmask.distributed import all_reduce_mean, data_parallel, world_size
from salmask.errors import UserError
from salmask.masks import strategies
from salmask.params.run import RunConfig
from salmask.train.adversary import Adversary
from salmask.train.batches import Batch
from salmask.train.optim import build_optimizer, learning_rate, rate_share, set_rates


class Learner:
    """A framework, its mask and its optimizer; the mask's own if it learns too."""

    def __init__(
        self, config: RunConfig, seed: int, steps_per_epoch: int, device: torch.device
    ) -> None:
        """Raises UserError for a configuration that does not fit."""
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.steps = steps_per_epoch * config.train.epochs
        if config.train.batch % world_size():
            raise UserError(
                f"train.batch: {config.train.batch} cannot be shared evenly by {world_size()} "
                "processes"
            )
        torch.manual_seed(seed)  # initial weights and queue; nothing draws from it afterwards
        built = frameworks.build(config.framework, config.encoder, config.train.batch, self.steps)
        self.framework = place(built, device).train()
        self.mask = strategies.build(config.mask, built.wiring, config.view)
        self.adversary = Adversary(place(self.mask.masker, device)) if self.mask.masker else None
        self.optimizer = build_optimizer(self.framework, config.train)
        network: nn.Module = self.framework
        if config.train.compile:
            network = cast(nn.Module, torch.compile(network))
        self.forward = data_parallel(network, device)

    def rate(self, step: int) -> float:
        """The learning rate at a global step."""
        return learning_rate(self.config.train, step, self.steps_per_epoch)

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """Learns from this process's share of a batch; the loss and what else there is to watch,
        means over all processes."""
        train = self.config.train
        set_rates(self.optimizer, train, self.rate(step))
        views = batch.views(self.mask)  # in float32 always: filters are small differences
        with autocast(self.device, train.precision):
            seen: dict[str, Tensor] = self.forward(views, step / self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        seen["loss"].backward()
        self.optimizer.step()
        if self.adversary:
            share = rate_share(train, step, self.steps_per_epoch)
            precision = autocast(self.device, train.precision)
            seen = seen | self.adversary.step(self.framework, batch, share, precision)
        all_reduce_mean(_running_statistics(self.framework))
        values = torch.stack([value.detach().float() for value in seen.values()])
        all_reduce_mean([values])
        return dict(zip(seen, values.tolist(), strict=True))  # the step's one synchronisation

    def state_dict(self) -> dict[str, Any]:
        return {
            "framework": self.framework.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.framework.load_state_dict(state["framework"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])


def _running_statistics(framework: nn.Module) -> list[Tensor]:
    """What batch norms remember: each process has seen its own groups only."""
    norms = [m for m in framework.modules() if isinstance(m, _BatchNorm)]
    found = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    return [statistic for statistic in found if statistic is not None]
