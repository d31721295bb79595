"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.devices import Precision
from salmask.encoders.on_disk import Encoder
from salmask.evaluate import Evaluation
from salmask.evaluate.features import Labelled, accuracy, extract, labelled_splits, set_precision
from salmask.job import Job
from salmask.params.ranges import NonNegativeInt, Positive, PositiveInt, Several

_QUERIES = 2048  # queries that are compared at once, to limit memory
_BANK = 8192  # neighbours that are compared at once


def predict(train: Labelled, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class of each query by weighted votes of its nearest neighbours.

    Args:
        train: features and labels of the neighbours; labels need not be contiguous.
        queries: (n,D).
        k: number of neighbours; at most all are used.
        temperature: of the weights.

    Returns:
        (n,) int64.
    """
    return vote(train.labels, *nearest(train, queries, k), temperature)


def nearest(train: Labelled, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The cosine similarities of each query with its nearest neighbours, and their rows.

    Reads the neighbours once. Apart from its arguments, it holds one block of them and the results.

    Args:
        train: features of the neighbours.
        queries: (n,D).
        k: number of neighbours; at most all are used.

    Returns:
        (n,k) float32 in descending order, and (n,k) int64.
    """
    device = train.labels.device
    unit_queries = F.normalize(queries.to(device), dim=1)
    k = min(k, len(train))
    similarity = unit_queries.new_full((len(queries), k), -torch.inf)
    rows = torch.zeros(len(queries), k, dtype=torch.int64, device=device)
    start = 0
    for features, _ in train.blocks(_BANK):
        unit = F.normalize(features, dim=1)
        for part, best, row in zip(
            *(tensor.split(_QUERIES) for tensor in (unit_queries, similarity, rows)), strict=True
        ):
            closest, position = (part @ unit.T).topk(min(k, len(unit)), dim=1)
            both = torch.cat([best, closest], dim=1)
            all_rows = torch.cat([row, position + start], dim=1)
            values, chosen = both.topk(k, dim=1)
            best.copy_(values)
            row.copy_(all_rows.gather(1, chosen))
        start += len(unit)
    return similarity, rows


def vote(labels: Tensor, similarity: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """The class with most votes of the neighbours of each query.

    Each neighbour votes with exp(cosine similarity / temperature), relative to the nearest
    neighbour, so that weights neither overflow nor vanish (Wu et al. 2018).

    Args:
        labels: (N,) int64, of all neighbours.
        similarity: (n,k) float32, in descending order.
        rows: (n,k) int64, of the neighbours.
        temperature: of the weights.

    Returns:
        (n,) int64.
    """
    classes, targets = labels.unique(return_inverse=True)
    predictions = []
    for near, row in zip(similarity.split(_QUERIES), rows.split(_QUERIES), strict=True):
        votes = near.new_zeros(len(near), len(classes))
        votes.scatter_add_(1, targets[row], ((near - near[:, :1]) / temperature).exp())
        predictions.append(classes[votes.argmax(dim=1)])
    return torch.cat(predictions)


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    k: Several[PositiveInt] = (20, 200),
    temperature: Positive = 0.07,
    random_seeds: NonNegativeInt = 3,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Top-1 accuracy in percent.

    Args:
        encoders: `trained`, and untrained ones under any other names.
        manifest: the images.
        job: device, seed and folders.
        k: numbers of neighbours.
        temperature: of the votes.
        random_seeds: number of untrained encoders, which the stage makes.
        precision: of the encoder. `auto` is bfloat16 on CUDA and float32 elsewhere.

    Returns:
        `knn20_top1`, on splits other than `val` `<split>_knn20_top1`, and the mean over untrained
        encoders as `random_knn20_top1`. Nothing without labels.
    """
    set_precision(encoders, precision)
    if not manifest.labelled():
        return {}
    sums: dict[str, float] = {}
    for name, encoder in encoders.items():
        kind = "" if name == "trained" else "random_"
        share = 1.0 if name == "trained" else 1.0 / (len(encoders) - 1)
        for metric, top1 in _scores(encoder, manifest, job, kind, k, temperature).items():
            sums[metric] = sums.get(metric, 0.0) + share * top1
    return sums


def _scores(
    encoder: Encoder,
    manifest: Manifest,
    job: Job,
    kind: str,
    k: tuple[int, ...],
    temperature: float,
) -> dict[str, float]:
    """The accuracies of one encoder on all labelled validation splits. kind: see `run`."""
    train = extract(encoder, manifest, "train", job)
    scores = {}
    for split, prefix in labelled_splits(manifest).items():
        query = extract(encoder, manifest, split, job)
        similarity, rows = nearest(train, query.features, max(k))
        for count in k:
            predicted = vote(train.labels, similarity[:, :count], rows[:, :count], temperature)
            scores[f"{prefix}{kind}knn{count}_top1"] = accuracy(predicted, query.labels)
    return scores


EVALUATION = Evaluation(run, label="k-NN", every_run=True)
