"""Contrastive losses, in float32, over L2-normalised embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_logits(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    hard_negative: Tensor | None = None,
    penalty: float = 1.0,
) -> Tensor:
    """[q.k+, q.queue..., penalty * q.k-] / temperature: (B, 1+K) or (B, 1+K+n).

    query, key: (B,D). queue: (D,K). hard_negative: (B,D) or (B,n,D), of the *same* image as the
    query. Chin et al. 2024, Eq. 2, with the positive kept in the denominator as He et al. 2020 do.
    """
    query, key, queue = query.float(), key.float(), queue.float()
    columns = [(query * key).sum(dim=1, keepdim=True), query @ queue]
    if hard_negative is not None:
        negatives = hard_negative.float()
        if negatives.dim() == 2:
            negatives = negatives[:, None]
        columns.append(penalty * torch.einsum("bd,bnd->bn", query, negatives))
    return torch.cat(columns, dim=1) / temperature


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    hard_negative: Tensor | None = None,
    penalty: float = 1.0,
) -> Tensor:
    """The mean cross entropy of `info_nce_logits` with the positive as target: () float32.

    A penalty of 0 leaves a constant logit in the denominator; it does not switch the term off.
    """
    logits = info_nce_logits(
        query, key, queue, temperature=temperature, hard_negative=hard_negative, penalty=penalty
    )
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
