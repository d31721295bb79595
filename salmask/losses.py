"""The losses of the frameworks, in float32: over L2-normalised embeddings where they contrast."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.distributed import gather, gather_with_gradient, rank

P = ParamSpec("P")
T = TypeVar("T")


def _in_float32(function: Callable[P, T]) -> Callable[P, T]:
    """Autocast would multiply float32 matrices in half precision too: not in a loss."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


@_in_float32
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
        columns.append(penalty * _own_similarity(query, hard_negative))
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
    return first_wins(logits).mean()


def first_wins(logits: Tensor) -> Tensor:
    """Cross entropy of each row (B,K) with its first column as target: (B,) float32."""
    target = torch.zeros_like(logits[:, 0], dtype=torch.long)
    return F.cross_entropy(logits.float(), target, reduction="none")


@_in_float32
def nt_xent_logits(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    hard_negative: Tensor | None = None,
    penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Every embedding of two views against all others of the global batch.

    first, second: (B,D). hard_negative: (B,D) or (B,n,D), cut from the second view of the *same*
    image, seen by the rows of the first view alone. Returns logits (2B, 2B*world + n), rows of the
    first view and then of the second, -inf where there is nothing to compare, and the column of
    each row's positive (2B,) int64. Chen et al. 2020a, Eq. 1; Chin et al. 2024, Sec. 3.3.
    """
    first, second = first.float(), second.float()
    count = len(first)
    everyone = torch.cat([gather_with_gradient(first), gather_with_gradient(second)])
    logits = torch.cat([first, second]) @ everyone.T
    here = torch.arange(count, device=first.device) + rank() * count
    there = here + len(everyone) // 2
    logits = logits.scatter(1, torch.cat([here, there])[:, None], -torch.inf)
    if hard_negative is not None:
        extra = penalty * _own_similarity(first, hard_negative)
        logits = torch.cat([logits, F.pad(extra, (0, 0, 0, count), value=-torch.inf)], dim=1)
    return logits / temperature, torch.cat([there, here])


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    hard_negative: Tensor | None = None,
    penalty: float = 1.0,
) -> Tensor:
    """The mean over the 2B rows of `nt_xent_logits`: () float32. Chen et al. 2020a, Eq. 1."""
    logits, positive = nt_xent_logits(
        first, second, temperature=temperature, hard_negative=hard_negative, penalty=penalty
    )
    return F.cross_entropy(logits, positive)


@_in_float32
def in_batch(query: Tensor, key: Tensor, rows: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE of query i with key rows[i], against all keys of the global batch: (B,) float32.

    query, key: (B,D). rows: (B,) int64, into this process's keys.
    """
    logits = query.float() @ gather_with_gradient(key.float()).T / temperature
    return F.cross_entropy(logits, rows + rank() * len(key), reduction="none")


def cosine(online: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine of each row with its target: (B,D), (B,D) -> (B,) float32.

    Chen & He 2021, Eq. 1; two plus twice this is Grill et al. 2020, Eq. 2.
    """
    return -F.cosine_similarity(online.float(), target.float(), dim=1)


@torch.no_grad()
def spread(embedded: Tensor) -> Tensor:
    """How far the embeddings (B,D) of all processes fill their space: ().

    The mean deviation of the unit vectors' coordinates times sqrt(D): 1 for directions drawn at
    random, 0 when all have collapsed into one (Chen & He 2021, Sec. 4.1).
    """
    unit = F.normalize(gather(embedded.float()), dim=1)
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5


def lambda_mix(losses: Tensor, share: Tensor) -> Tensor:
    """One term of a mixture: losses (B,) weighed by each positive's share (B,) of the picture: ().

    Shen et al. 2022; Vishniakov et al. 2023, Eq. 4.
    """
    return (share * losses).mean()


def _own_similarity(query: Tensor, negatives: Tensor) -> Tensor:
    """q.k- of each query with its own hard negatives, (B,D) or (B,n,D): (B,n)."""
    negatives = negatives.float()
    if negatives.dim() == 2:
        negatives = negatives[:, None]
    return torch.einsum("bd,bnd->bn", query, negatives)
