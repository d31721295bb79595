"""Projection and prediction heads: multi-layer perceptrons with or without batch norm."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from salmask.encoders.norms import GroupedBatchNorm

Last = Literal["bare", "norm", "plain_norm"]


def mlp(sizes: Sequence[int], *, norm: bool, last: Last = "bare", bn_group: int = 0) -> nn.Module:
    """Linear layers of the given sizes with ReLU between them: (B, sizes[0]) -> (B, sizes[-1]).

    A layer that batch norm follows has no bias.

    Args:
        sizes: numbers of features, from the input to the output.
        norm: whether batch norm follows each layer except the last.
        last: what follows the last layer: nothing (`bare`), batch norm (`norm`), or batch norm
            without scale and shift (`plain_norm`).
        bn_group: samples that share batch-norm statistics; 0 for the whole batch of all processes.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        is_last = index == len(sizes) - 2
        has_norm = last != "bare" if is_last else norm
        layers.append(nn.Linear(inputs, outputs, bias=not has_norm))
        if has_norm:
            affine = not (is_last and last == "plain_norm")
            layers.append(GroupedBatchNorm(outputs, bn_group, affine))
        if not is_last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def from_weights(weights: Mapping[str, Tensor]) -> nn.Module:
    """Rebuilds a head of `mlp` from its `state_dict`, in eval mode.

    A layer without weights is a ReLU. An empty `state_dict` gives the identity.
    """
    indices = {int(name.partition(".")[0]) for name in weights}
    layers: list[nn.Module] = []
    for index in range(max(indices, default=-1) + 1):
        weight = weights.get(f"{index}.weight")
        mean = weights.get(f"{index}.running_mean")
        if mean is not None:
            layers.append(GroupedBatchNorm(len(mean), affine=weight is not None))
        elif weight is not None:
            outputs, inputs = weight.shape
            layers.append(nn.Linear(inputs, outputs, bias=f"{index}.bias" in weights))
        else:
            layers.append(nn.ReLU())
    head = nn.Sequential(*layers)
    head.load_state_dict(dict(weights))
    return head.eval().requires_grad_(False)
