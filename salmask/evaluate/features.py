"""Features of the evaluation views (resize, centre crop, the encoder's own input filter)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from salmask.data.loader import centred
from salmask.data.manifest import Manifest
from salmask.encoder_file import Encoder
from salmask.job import Job
from salmask.progress import progress

BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """features (n,D) float32 on the device, labels (n,) int64 beside them."""

    features: Tensor
    labels: Tensor


@torch.inference_mode()
def extract(encoder: Encoder, manifest: Manifest, split: str, job: Job) -> Labelled:
    """Pooled features of every labelled image of a split, in manifest order."""
    ids = manifest.ids(split)
    ids = ids[manifest.labels[ids] >= 0]
    found = []
    with progress(f"features of {split}", len(ids)) as bar:
        for images in centred(
            manifest,
            ids,
            encoder.spec.size,
            encoder.spec.shorter,
            batch=BATCH,
            device=job.device,
            workers=job.workers,
        ):
            found.append(encoder(images))
            bar.advance(len(images))
    return Labelled(torch.cat(found), manifest.labels[ids].to(job.device))


def validation_splits(manifest: Manifest) -> dict[str, str]:
    """The splits to score, each with the prefix of its metrics: none for `val`, else its name."""
    return {
        split: "" if split == "val" else f"{split}_"
        for split in manifest.split_names()
        if split != "train"
    }


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in percent: (n,), (n,) int64."""
    return 100.0 * (predicted == labels).float().mean().item()
