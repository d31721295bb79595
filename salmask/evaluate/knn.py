"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.data.manifest import Manifest
from salmask.encoders.on_disk import Encoder
from salmask.evaluate.features import Labelled, accuracy, extract, labelled_splits
from salmask.job import Job

_CHUNK = 2048  # queries at a time: bounds memory


def predict(train: Labelled, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class of each query (n,D): (n,) int64.

    Cosine similarity; each of the k nearest votes with exp(similarity / temperature), relative to
    the nearest one so that it neither overflows nor vanishes; the class with the most weight
    wins. Labels need not be contiguous. k is clamped to what there is.
    """
    classes, targets = train.labels.unique(return_inverse=True)
    bank = F.normalize(train.features, dim=1)
    found = []
    for chunk in F.normalize(queries, dim=1).split(_CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = chunk.new_zeros(len(chunk), len(classes))
        votes.scatter_add_(
            1, targets[nearest], ((similarity - similarity[:, :1]) / temperature).exp()
        )
        found.append(classes[votes.argmax(dim=1)])
    return torch.cat(found)


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    k: tuple[int, ...] = (20, 200),
    temperature: float = 0.07,
    random_seeds: int = 3,
) -> dict[str, float]:
    """Top-1 in percent: `knn20_top1`, on other splits `<split>_knn20_top1`.

    encoders: `trained`, and untrained ones under any other name, whose mean gives
    `random_knn20_top1`. random_seeds: how many of those the stage should make.
    """
    if not manifest.labelled():
        return {}
    sums: dict[str, float] = {}
    for name, encoder in encoders.items():
        train = extract(encoder, manifest, "train", job)
        share = 1.0 if name == "trained" else 1.0 / (len(encoders) - 1)
        for split, prefix in labelled_splits(manifest).items():
            query = extract(encoder, manifest, split, job)
            for neighbours in k:
                found = predict(train, query.features, neighbours, temperature)
                kind = "" if name == "trained" else "random_"
                metric = f"{prefix}{kind}knn{neighbours}_top1"
                top1 = accuracy(found, query.labels)
                sums[metric] = sums.get(metric, 0.0) + share * top1
    return sums
