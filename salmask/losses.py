"""Losses of the frameworks, in float32. Contrastive losses take L2-normalised embeddings."""

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
    """Disables autocast, which would multiply float32 matrices in half precision."""

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

    Chin et al. 2024, Eq. 2, with the positive in the denominator as in He et al. 2020.

    Args:
        query: (B,D).
        key: (B,D).
        queue: (D,K).
        temperature: divisor of all similarities.
        hard_negative: (B,D) or (B,n,D), of the same image as the query.
        penalty: factor of the similarity with hard negatives (rho in the paper).
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

    Takes the arguments of `info_nce_logits`. A penalty of 0 does not remove the hard negative: a
    constant logit of 0 stays in the denominator.
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
    """Logits of each embedding of two views against all others of the global batch.

    Chen et al. 2020a, Eq. 1; Chin et al. 2024, Sec. 3.3.

    Args:
        first: embeddings of the first view (B,D).
        second: embeddings of the second view (B,D).
        temperature: divisor of all similarities.
        hard_negative: (B,D) or (B,n,D), made from the second view of the same image. Only the rows
            of the first view are compared with it.
        penalty: factor of the similarity with hard negatives.

    Returns logits (2B, 2B*world + n), first the rows of the first view, then those of the second,
    with -inf where nothing is compared; and the column of each row's positive, (2B,) int64.
    """
    first, second = first.float(), second.float()
    count = len(first)
    everything = torch.cat([gather_with_gradient(first), gather_with_gradient(second)])
    logits = torch.cat([first, second]) @ everything.T
    first_column = torch.arange(count, device=first.device) + rank() * count
    second_column = first_column + len(everything) // 2
    itself = torch.cat([first_column, second_column])
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    if hard_negative is not None:
        extra = penalty * _own_similarity(first, hard_negative)
        logits = torch.cat([logits, F.pad(extra, (0, 0, 0, count), value=-torch.inf)], dim=1)
    return logits / temperature, torch.cat([second_column, first_column])


@_in_float32
def in_batch(query: Tensor, key: Tensor, rows: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE of query i with key rows[i], against all keys of the global batch: (B,) float32.

    Args:
        query: (B,D).
        key: (B,D).
        rows: (B,) int64, indices into this process's keys.
        temperature: divisor of all similarities.
    """
    logits = query.float() @ gather_with_gradient(key.float()).T / temperature
    return F.cross_entropy(logits, rows + rank() * len(key), reduction="none")


def cosine(online: Tensor, target: Tensor) -> Tensor:
    """The negative cosine of each row with its target: (B,D), (B,D) -> (B,) float32.

    Chen & He 2021, Eq. 1. Twice this plus 2 is Grill et al. 2020, Eq. 2.
    """
    return -F.cosine_similarity(online.float(), target.float(), dim=1)


@torch.no_grad()
def spread(embedded: Tensor) -> Tensor:
    """A measure of collapse, over the embeddings (B,D) of all processes: ().

    The mean standard deviation of the coordinates of the unit vectors, times sqrt(D): about 1 for
    random directions, 0 when all embeddings are equal. Chen & He 2021, Sec. 4.1.
    """
    unit = F.normalize(gather(embedded.float()), dim=1)
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5


def lambda_mix(losses: Tensor, share: Tensor) -> Tensor:
    """One loss term of mixed images: losses (B,) weighted by the share of each positive (B,): ().

    Shen et al. 2022; Vishniakov et al. 2023, Eq. 4.
    """
    return (share * losses).mean()


def _own_similarity(query: Tensor, negatives: Tensor) -> Tensor:
    """The similarity of each query (B,D) with its hard negatives, (B,D) or (B,n,D): (B,n)."""
    negatives = negatives.float()
    if negatives.dim() == 2:
        negatives = negatives[:, None]
    return torch.einsum("bd,bnd->bn", query, negatives)
