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

_CHUNK = 2048  # queries that are computed at once, to limit memory


def predict(train: Labelled, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class of each query by weighted votes of its nearest neighbours.

    Each neighbour votes with exp(cosine similarity / temperature), relative to the nearest
    neighbour, so that weights neither overflow nor vanish (Wu et al. 2018).

    Args:
        train: features and labels of the neighbours; labels need not be contiguous.
        queries: (n,D).
        k: number of neighbours; at most all are used.
        temperature: of the weights.

    Returns:
        (n,) int64.
    """
    classes, targets = train.labels.unique(return_inverse=True)
    bank = F.normalize(train.features, dim=1)
    predictions = []
    for chunk in F.normalize(queries, dim=1).split(_CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = chunk.new_zeros(len(chunk), len(classes))
        votes.scatter_add_(
            1, targets[nearest], ((similarity - similarity[:, :1]) / temperature).exp()
        )
        predictions.append(classes[votes.argmax(dim=1)])
    return torch.cat(predictions)


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    k: tuple[int, ...] = (20, 200),
    temperature: float = 0.07,
    random_seeds: int = 3,
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
        train = extract(encoder, manifest, "train", job)
        share = 1.0 if name == "trained" else 1.0 / (len(encoders) - 1)
        for split, prefix in labelled_splits(manifest).items():
            query = extract(encoder, manifest, split, job)
            for neighbours in k:
                predicted = predict(train, query.features, neighbours, temperature)
                kind = "" if name == "trained" else "random_"
                metric = f"{prefix}{kind}knn{neighbours}_top1"
                top1 = accuracy(predicted, query.labels)
                sums[metric] = sums.get(metric, 0.0) + share * top1
    return sums


EVALUATION = Evaluation(run, label="k-NN", every_run=True)
