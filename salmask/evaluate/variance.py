"""How far an image's features spread over its views (Chin et al. 2024, Table 7), and the alignment
and uniformity of the embedding (Wang & Isola 2020).

The views are those that the run trains its query on, mask included, of validation images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from salmask.config import RunConfig
from salmask.data.loader import Crops, Schedule, pairs
from salmask.data.manifest import Manifest
from salmask.data.views import normalise, photometry
from salmask.encoder_file import Encoder
from salmask.errors import UserError
from salmask.evaluate.features import validation_splits
from salmask.job import Job
from salmask.masks import strategies
from salmask.progress import progress
from salmask.randomness import Draws
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Pair

_CHUNK = 2048  # rows of the matrix of distances at a time: bounds memory


@dataclass(frozen=True)
class Augmentation:
    """What makes a run's views: its configuration, and the saliency that its mask may read."""

    config: RunConfig
    store: Path


@dataclass(frozen=True)
class Spread:
    """Of n images with V views each, in D dimensions. mean: the unbiased variance over views, mean
    over dimensions and images; total: its sum over dimensions, mean over images."""

    mean: float
    total: float


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    augmentation: Augmentation,
    *,
    views: PositiveInt = 32,
    masked: bool = True,
    batch: PositiveInt = 8,
    images: Literal["stream", "resident"] = "stream",
) -> dict[str, float]:
    """`variance_pooled` and `variance_pooled_total` of the pooled features, `variance_unit` and
    `variance_unit_total` of the same at length 1, and of these `variance_alignment` (mean squared
    distance of two views of an image) and `variance_uniformity` (log mean exp(-2 d^2) over pairs
    of images, one view each); other splits go before it. No percentages. Labels are not used.

    views: of each image. masked: by the run's mask; otherwise the names begin with
    `variance_unmasked`. batch: images at a time, in all their views. Raises UserError.
    """
    if views < 2:
        raise UserError("evaluate.variance: views must be at least 2, or nothing varies")
    name = "variance" if masked else "variance_unmasked"
    metrics: dict[str, float] = {}
    for split, prefix in validation_splits(manifest).items():
        sums, first = torch.zeros(4, dtype=torch.float64), []
        ids = manifest.ids(split)
        crops = _crops(manifest, ids, views, batch, images, augmentation.config, job)
        seen = _features(encoders["trained"], manifest, crops, masked, augmentation, job)
        with progress(f"views of {split}", len(ids)) as bar:
            for features in seen:
                unit = F.normalize(features.double(), dim=-1)
                found = [spread(features), spread(unit)]
                told = [value for s in found for value in (s.mean, s.total)]
                sums += len(features) * torch.tensor(told, dtype=torch.float64)
                first.append(unit[:, 0])
                bar.advance(len(features))
        pooled, pooled_total, unit_mean, unit_total = (sums / len(ids)).tolist()
        metrics |= {
            f"{prefix}{name}_pooled": pooled,
            f"{prefix}{name}_pooled_total": pooled_total,
            f"{prefix}{name}_unit": unit_mean,
            f"{prefix}{name}_unit_total": unit_total,
            # E|x - y|^2 over two different views is twice their unbiased variance
            f"{prefix}{name}_alignment": 2 * unit_total,
        }
        if len(ids) > 1:
            metrics[f"{prefix}{name}_uniformity"] = uniformity(torch.cat(first))
    return metrics


def spread(features: Tensor) -> Spread:
    """The variance of features (n,V,D) over views, V at least 2; computed in float64."""
    variance = features.double().var(dim=1, correction=1)
    return Spread(variance.mean().item(), variance.sum(dim=1).mean().item())


def uniformity(unit: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over the pairs of different rows of (n,D), n at least 2, each
    of length 1 (Wang & Isola 2020, with their t = 2)."""
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    for chunk in unit.split(_CHUNK):
        distance = (2 - 2 * chunk @ unit.T).clamp(min=0)  # squared
        total += torch.exp(-2 * distance).double().sum()
    count = len(unit)
    own = torch.exp(-2 * (2 - 2 * unit.square().sum(dim=1)).clamp(min=0)).double().sum()
    return float(((total - own) / (count * (count - 1))).log())


def _crops(
    manifest: Manifest,
    ids: Tensor,
    views: int,
    batch: int,
    images: str,
    config: RunConfig,
    job: Job,
) -> Iterator[Crops]:
    """Every image once, in all its views: each has random numbers of its own."""
    return pairs(
        manifest,
        config.view,
        Schedule(job.seed, ids, batch, epochs=1, whole=True),
        images=images,
        device=job.device,
        workers=job.workers,
        branches=tuple(f"view{n}" for n in range(views)),
    )


@torch.no_grad()
def _features(
    encoder: Encoder,
    manifest: Manifest,
    batches: Iterator[Crops],
    masked: bool,
    augmentation: Augmentation,
    job: Job,
) -> Iterator[Tensor]:
    """Pooled features (B,V,D) of the images of each batch, in all their views."""
    config = augmentation.config
    if masked and config.mask.name in strategies.LEARNED:
        raise UserError(
            f"evaluate.variance: the mask of run {config.name} ({config.mask.name}) learns, and "
            "its masks are not measured here: take the run out, or set `masked: false`"
        )
    mask = strategies.function_of(config.mask) if masked else None
    store = None
    if masked and strategies.reads_saliency(config.mask):
        store = SaliencyStore.open(augmentation.store, manifest.digest, None, job.device)
    grid = (config.view.grid, config.view.grid)
    for crops in batches:
        draws = Draws.of(job.seed, crops.epoch, crops.ids)
        found = []
        for view, pixels in crops.crops.items():
            seen = photometry(pixels.float() / 255, draws, view, config.view)
            if mask is None:
                found.append(encoder(seen))
                continue
            maps = None
            if store is not None:
                maps = store.crop(crops.ids, crops.boxes[view], crops.flips[view], grid)
            query = normalise(seen)
            query = mask(Pair(query, query, maps, maps), draws.fork(view), config.view.grid).query
            # the mask has filtered already what its encoders see filtered
            found.append(encoder.network(query.contiguous(memory_format=torch.channels_last)))
        yield torch.stack([part.float() for part in found], dim=1)
