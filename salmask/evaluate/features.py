"""Features of the evaluation views (resize, centre crop, the encoder's own input filter)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmask.code_digests import code_digest
from salmask.data.loader import Schedule, evaluation_images, training_views
from salmask.data.manifest import Manifest
from salmask.devices import Precision, computes_in_bfloat16, inference
from salmask.distributed import gather_uneven, local_batches
from salmask.encoders.on_disk import Encoder
from salmask.errors import NonFiniteLossError
from salmask.evaluate import feature_cache
from salmask.evaluate.subsets import labelled_ids
from salmask.job import Job
from salmask.params.view import ViewConfig
from salmask.progress import progress
from salmask.provenance import environment

BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """Features and labels of images.

    Args:
        features: (N,D) float32.
        labels: (N,) int64, on the device of the computations.
        rows: (n,) int64, the rows that count, on the device of `features`; None for all.
    """

    features: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels if self.rows is None else self.rows)

    def pick(self, rows: Tensor) -> "Labelled":
        """Some of all rows, without a copy of their features. rows: (n,) int64."""
        return Labelled(self.features, self.labels, rows.to(self.features.device))

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels in blocks of `size` rows, on the device of the labels."""
        device = self.labels.device
        for start in range(0, len(self), size):
            some: slice | Tensor = slice(start, start + size)
            labels_of = some
            if self.rows is not None:
                some = self.rows[some]
                labels_of = some.to(device)
            yield self.features[some].to(device), self.labels[labels_of]


def extract(encoder: Encoder, manifest: Manifest, split: str, job: Job) -> Labelled:
    """Pooled features of every labelled image of a split, in manifest order."""
    return extract_rows(encoder, manifest, labelled_ids(manifest, split), job, split)


@torch.no_grad()
def extract_rows(
    encoder: Encoder, manifest: Manifest, ids: Tensor, job: Job, name: str = ""
) -> Labelled:
    """Pooled features of the rows `ids` (n,), in this order.

    The processes of a group share the work; each returns all features. With `job.features`, they
    are stored there and computed once (see `feature_cache`). They may then be too large for the
    memory of a GPU, and are in the main memory.

    Args:
        encoder: the encoder.
        manifest: the images.
        ids: the rows.
        job: device, workers and folders.
        name: for progress lines; without a name there are none.

    Raises:
        NonFiniteLossError: a feature is NaN or infinite.
    """
    lost: list[bool] = []  # not empty when an image of the next batch could not be read

    def compute(rows: Tensor) -> Iterator[Tensor]:
        images = evaluation_images(
            manifest,
            rows,
            encoder.spec.size,
            encoder.spec.shorter,
            batch=BATCH,
            device=job.device,
            workers=job.workers,
            on_lost=lambda: lost.append(True),
        )
        return map(_refuse_non_finite, map(encoder, images))

    def compute_stored(positions: Tensor) -> Iterator[tuple[Tensor, bool]]:
        for features in compute(ids[positions]):
            yield features, not lost
            lost.clear()

    labels, title = manifest.labels[ids].to(job.device), name and f"features of {name}"
    if job.features is None or not len(ids):
        return Labelled(_of_all_processes(compute, ids, title), labels)
    features = feature_cache.load_or_compute(
        job.features,
        _key(encoder, manifest, ids, job),
        len(ids),
        BATCH,
        lambda: _example(encoder, job),
        compute_stored,
        title,
    )
    return Labelled(_placed(features, job.device), labels)


def _refuse_non_finite(features: Tensor) -> Tensor:
    """The features themselves. Raises NonFiniteLossError if one is NaN or infinite."""
    if not features.isfinite().all():
        raise NonFiniteLossError(
            "the encoder computes features that are NaN or infinite, so nothing can be scored: its "
            "training diverged. Train it again, for instance with a lower `train.lr`"
        )
    return features


def _key(encoder: Encoder, manifest: Manifest, ids: Tensor, job: Job) -> dict[str, Any]:
    """Everything that decides the features of the rows `ids` (n,)."""
    weights = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    backbone = f"salmask.encoders.backbones.{encoder.config.family}"
    used = environment(job.device)
    return {
        "encoder": weights.hexdigest(),
        "architecture": asdict(encoder.config),
        "input": asdict(encoder.spec),
        "precision": "bfloat16"
        if computes_in_bfloat16(job.device, encoder.precision)
        else "float32",
        "manifest": manifest.digest,
        "rows": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
        "batch": BATCH,
        "code": code_digest([__name__, backbone], Path(__file__).parents[2]),
        "versions": used["versions"],
        "device": [used["device"]["type"], used["device"].get("model", "")],
    }


def _example(encoder: Encoder, job: Job) -> Tensor:
    """The network's output (1,D) for an image, in the type in which it is computed."""
    side = encoder.spec.size
    inputs = encoder.spec.prepared(torch.zeros(1, 3, side, side, device=job.device))
    with inference(job.device, encoder.precision):
        output: Tensor = encoder.network(inputs)
    return output


def _placed(features: Tensor, device: torch.device) -> Tensor:
    """The features on the device, or in the main memory if they need over half of a GPU's."""
    if device.type == "cuda" and 2 * features.nbytes > torch.cuda.mem_get_info(device)[0]:
        return features
    return features.to(device)


@torch.no_grad()
def extract_views(
    encoder: Encoder, manifest: Manifest, ids: Tensor, views: int, images: str, job: Job, name: str
) -> Tensor:
    """Pooled features (n,views,D) of augmented views of the rows `ids` (n,), in this order.

    The processes of a group share the work; each returns all features. images: `stream` or
    `resident`. name: for progress lines.
    """

    def compute(rows: Tensor) -> Iterator[Tensor]:
        for crops in training_views(
            manifest,
            crop_and_flip(encoder.spec.size),
            Schedule(job.seed, rows, BATCH, epochs=1, whole=True),
            images=images,
            device=job.device,
            workers=job.workers,
            branches=tuple(f"view{n}" for n in range(views)),
        ):
            each = [encoder(pixels.float() / 255) for pixels in crops.crops.values()]
            yield _refuse_non_finite(torch.stack(each, dim=1))

    return _of_all_processes(compute, ids, f"views of {name}")


def _of_all_processes(
    compute: Callable[[Tensor], Iterator[Tensor]], ids: Tensor, title: str
) -> Tensor:
    """The results of all rows `ids` (n,), of which each process computes its part.

    Args:
        compute: rows -> results of batches of them.
        ids: the rows.
        title: of the progress lines; "" for none.
    """
    own = local_batches(ids, BATCH)
    rows = own if len(own) else ids[:1]  # every process needs the width of the results
    results, done = torch.empty(0), 0
    with progress(title, len(rows)) if title else nullcontext() as bar:
        for part in compute(rows):
            if not done:  # one tensor, since joining parts would need twice the memory
                results = part.new_empty(len(rows), *part.shape[1:])
            results[done : done + len(part)] = part
            done += len(part)
            if bar:
                bar.advance(len(part))
    return gather_uneven(results[: len(own)])


def crop_and_flip(side: int) -> ViewConfig:
    """The views that classifiers are trained on: crops of 8 to 100% of the area, and flips."""
    return ViewConfig(size=side, grid=1, crop=(0.08, 1.0), jitter_p=0, gray_p=0, blur_p=0)


def set_precision(encoders: Mapping[str, Encoder], precision: Precision) -> None:
    """Sets the precision in which the networks of encoders compute features."""
    for encoder in encoders.values():
        encoder.precision = precision


def width(encoder: Encoder, job: Job) -> int:
    """The number of features of an encoder."""
    side = encoder.spec.size
    with torch.inference_mode():
        return int(encoder(torch.zeros(1, 3, side, side, device=job.device)).shape[1])


def validation_split(manifest: Manifest) -> str:
    """`val` if it exists, or else the first split other than `train`, or else `train`."""
    names = manifest.split_names()
    return "val" if "val" in names else next((n for n in names if n != "train"), "train")


def validation_splits(manifest: Manifest) -> dict[str, str]:
    """The splits to score, each with the prefix of its metrics: empty for `val`, else its name."""
    return {
        split: "" if split == "val" else f"{split}_"
        for split in manifest.split_names()
        if split != "train"
    }


def labelled_splits(manifest: Manifest) -> dict[str, str]:
    """The validation splits that have labelled images."""
    splits = validation_splits(manifest)
    return {name: prefix for name, prefix in splits.items() if len(labelled_ids(manifest, name))}


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in percent: (n,), (n,) int64."""
    return 100.0 * (predicted == labels).float().mean().item()


def top(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows whose label is among the k highest logits, in percent: (n,C), (n,) int64."""
    highest = logits.topk(k, dim=1).indices
    return 100.0 * (highest == labels[:, None]).any(dim=1).float().mean().item()


def mean_per_class(predicted: Tensor, labels: Tensor) -> float:
    """The mean of the accuracies on each class that occurs, in percent: (n,), (n,) int64."""
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    right = torch.zeros(len(classes), dtype=torch.float64, device=labels.device)
    right.index_add_(0, index, (predicted == labels).double())
    return 100.0 * (right / counts).mean().item()
