"""Measures of embeddings that need no labels."""

import math

import torch
from torch import Tensor

from salmask.losses import spread

_EPSILON = 1e-7  # as in public code; it could not be compared with the paper


def scores(embedded: Tensor) -> dict[str, float]:
    """`rankme` (see below) and `spread` (see `losses.spread`) of embeddings (n,D).

    All processes of a group call this together, with the same embeddings.
    """
    return {"rankme": rankme(embedded), "spread": float(spread(embedded))}


def rankme(embedded: Tensor) -> float:
    """RankMe, the effective rank of embeddings (n,D): from 1 to min(n,D).

    exp(-sum p log p), where p are the singular values of the embeddings divided by their sum, plus
    1e-7 (Garrido et al. 2023). The embeddings are not centred. Computed in float64. It is 1 when
    all embeddings are multiples of one vector. Here it is 1 too for embeddings that are all 0, and
    nan for embeddings that are not finite.
    """
    if not embedded.isfinite().all():
        return math.nan
    singular = torch.linalg.svdvals(embedded.double())
    total = singular.sum()
    if total == 0:
        return 1.0
    p = singular / total + _EPSILON
    return float(torch.exp(-(p * p.log()).sum()))
