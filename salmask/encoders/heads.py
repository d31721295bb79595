"""Projection and prediction heads: multi-layer perceptrons, with batch norm or without."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from salmask.encoders.norms import GroupedBatchNorm

Last = Literal["bare", "norm", "plain_norm"]


def mlp(sizes: Sequence[int], *, norm: bool, last: Last = "bare", bn_group: int = 0) -> nn.Module:
    """Linear layers of the given sizes with ReLU between them: (B, sizes[0]) -> (B, sizes[-1]).

    norm: whether batch norm follows each layer but the last. last: what follows that one: nothing
    (`bare`), batch norm, or batch norm without scale and shift (`plain_norm`). A layer that is
    normalised has no bias of its own. bn_group: samples that share statistics, 0 for the whole
    batch of all processes.
    """
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        ends = place == len(sizes) - 2
        normed = last != "bare" if ends else norm
        layers.append(nn.Linear(inputs, outputs, bias=not normed))
        if normed:
            affine = not (ends and last == "plain_norm")
            layers.append(GroupedBatchNorm(outputs, bn_group, affine))
        if not ends:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def from_weights(weights: Mapping[str, Tensor]) -> nn.Module:
    """The head that `mlp` made, from what its `state_dict` says, in eval mode; the identity where
    that says nothing. What has no weights between two layers is a ReLU."""
    places = {int(name.partition(".")[0]) for name in weights}
    layers: list[nn.Module] = []
    for place in range(max(places, default=-1) + 1):
        weight = weights.get(f"{place}.weight")
        mean = weights.get(f"{place}.running_mean")
        if mean is not None:
            layers.append(GroupedBatchNorm(len(mean), affine=weight is not None))
        elif weight is not None:
            outputs, inputs = weight.shape
            layers.append(nn.Linear(inputs, outputs, bias=f"{place}.bias" in weights))
        else:
            layers.append(nn.ReLU())
    head = nn.Sequential(*layers)
    head.load_state_dict(dict(weights))
    return head.eval().requires_grad_(False)
