"""Optimizers and learning-rate schedules."""

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import nn

from salmask.params.train import TrainConfig
from salmask.train.lars import LARS


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a run, for the parameters of `model` that require gradients.

    Weight decay applies to all of them; with LARS, only to parameters of two or more dimensions.
    Parameters of the submodules in `model.constant_rate` (an optional tuple of names) are in groups
    marked `constant`, whose rate does not change (SimSiam's predictor: Chen & He 2021).

    Torch's optimizers are fused: one kernel updates many parameters. SGD then computes the same
    bytes as without, on a CPU; Adam and AdamW differ by rounding.

    Raises:
        AttributeError: for a submodule that does not exist.
        ValueError: when no parameter requires a gradient.
    """
    groups = _groups(model, by_dimension=config.optimizer == "lars")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    if config.optimizer == "lars":
        return LARS(groups, config.lr, config.momentum, config.weight_decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay, fused=True)


def _groups(model: nn.Module, by_dimension: bool) -> list[dict[str, Any]]:
    """Parameter groups in the order of the model.

    by_dimension: whether biases and norm weights have groups of their own, without decay.
    """
    constant = {
        id(parameter)
        for name in getattr(model, "constant_rate", ())
        for parameter in model.get_submodule(name).parameters()
    }
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():  # a parameter with two names occurs once
        if not parameter.requires_grad:
            continue
        fixed = id(parameter) in constant
        excluded = by_dimension and parameter.ndim <= 1
        group = groups.setdefault((fixed, excluded), {"params": [], "constant": fixed})
        if excluded:
            group |= {"adapt": False, "weight_decay": 0.0}
        group["params"].append(parameter)
    return list(groups.values())


def set_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, rate: float) -> None:
    """Sets the learning rate of every group: `rate`, or `config.lr` where marked `constant`."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr if group.get("constant") else rate


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate at a global step (see `rate_share`)."""
    return config.lr * rate_share(config, step, steps_per_epoch)


def rate_share(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The share of the peak rate at a global step: linear warm-up from 0, then `config.schedule`.

    `cosine`: half a cosine to 0, per step. `step`: times gamma from the start of every epoch in
    `milestones`, counted from 0 (He et al. 2020). `constant`: the peak.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.gamma ** bisect_right(config.milestones, step // steps_per_epoch)
    total = config.epochs * steps_per_epoch
    done = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))
