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
from torch import Tensor, nn

from salmask.data.loader import Crops, Schedule, training_views
from salmask.data.manifest import Manifest
from salmask.data.normalisation import normalise
from salmask.data.photometry import apply_photometry
from salmask.distributed import gather_uneven, local_batches
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate.features import validation_splits
from salmask.job import Job
from salmask.masks import MASKS, fill
from salmask.masks.options import function_of, input_filter, reads_saliency
from salmask.params.run import RunConfig
from salmask.progress import progress
from salmask.randomness import Draws
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Pair

_CHUNK = 2048  # rows of the matrix of distances at a time: bounds memory


@dataclass(frozen=True)
class Augmentation:
    """What makes a run's views, and what sees them. config: the run's. store: the saliency that
    its mask may read. encoder: the folder of the encoder and its head. through: whose they are,
    where they are another run's."""

    config: RunConfig
    store: Path
    encoder: Path
    through: str = ""


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
    of images, one view each); the same after the head, as `variance_projected`,
    `variance_projected_unit` and so on. Other splits go before it. No percentages. Labels are not
    used.

    views: of each image. masked: by the run's mask; otherwise the names begin with
    `variance_unmasked`. Through another run's encoder, `_through_<run>` follows. batch: images at a
    time, in all their views. Raises UserError.
    """
    if views < 2:
        raise UserError("evaluate.variance: views must be at least 2, or nothing varies")
    name = "variance" if masked else "variance_unmasked"
    name += f"_through_{augmentation.through}" if augmentation.through else ""
    head = encoder_file.load_projector(augmentation.encoder, job.device)
    heads = {"pooled": nn.Identity(), "projected": head}
    metrics: dict[str, float] = {}
    for split, prefix in validation_splits(manifest).items():
        ids = manifest.ids(split)
        own = local_batches(ids, batch)
        rows = own if len(own) else ids[:1]  # so that all know how wide features are
        spreads: dict[str, list[Tensor]] = {kind: [] for kind in heads}
        first: dict[str, list[Tensor]] = {kind: [] for kind in heads}
        crops = _crops(manifest, rows, views, batch, images, augmentation.config, job)
        seen = _features(encoders["trained"], manifest, crops, masked, augmentation, job)
        with progress(f"views of {split}", len(rows)) as bar:
            for pooled in seen:
                for kind, head in heads.items():
                    features = head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
                    unit = F.normalize(features.double(), dim=-1)
                    spreads[kind].append(torch.cat([spread(features), spread(unit)], dim=1))
                    first[kind].append(unit[:, 0])
                bar.advance(len(pooled))
        for kind in heads:
            told = gather_uneven(torch.cat(spreads[kind])[: len(own)])
            unit = gather_uneven(torch.cat(first[kind])[: len(own)])
            metrics |= _named(f"{prefix}{name}", kind, told, unit)
    return metrics


def _named(name: str, kind: str, spreads: Tensor, unit: Tensor) -> dict[str, float]:
    """The metrics of one kind of features: (n,4), of features as they are and at length 1; and one
    view of each image at length 1 (n,D)."""
    mean, total, unit_mean, unit_total = spreads.mean(dim=0).tolist()
    apart = f"{name}_" if kind == "pooled" else f"{name}_{kind}_"
    metrics = {
        f"{name}_{kind}": mean,
        f"{name}_{kind}_total": total,
        f"{apart}unit": unit_mean,
        f"{apart}unit_total": unit_total,
        # E|x - y|^2 over two different views is twice their unbiased variance
        f"{apart}alignment": 2 * unit_total,
    }
    return metrics | ({f"{apart}uniformity": uniformity(unit)} if len(unit) > 1 else {})


def spread(features: Tensor) -> Tensor:
    """How far each image's features (n,V,D) spread over its views: the unbiased variance, its mean
    over dimensions and its sum; (n,2) float64."""
    variance = features.double().var(dim=1, correction=1)
    return torch.stack([variance.mean(dim=1), variance.sum(dim=1)], dim=1)


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
    """Every row once, in order, in all its views: each has random numbers of its own."""
    return training_views(
        manifest,
        config.view,
        Schedule(job.seed, ids, batch, epochs=1, whole=True),
        images=images,
        device=job.device,
        workers=job.workers,
        branches=tuple(f"view{n}" for n in range(views)),
    )


def refuse_learned(config: RunConfig, masked: bool) -> None:
    """Raises UserError where views should wear a mask that learns."""
    if masked and MASKS[config.mask.name].learns:
        raise UserError(
            f"evaluate.variance: the mask of run {config.name} ({config.mask.name}) learns, and "
            "its masks are not measured here: take the run out, or set `masked: false`"
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
    refuse_learned(config, masked)
    mask = function_of(config.mask) if masked else None
    wanted = input_filter(config.mask, config.view.size)
    store = None
    if masked and reads_saliency(config.mask):
        store = SaliencyStore.open(augmentation.store, manifest.digest, None, job.device)
    grid = (config.view.grid, config.view.grid)
    for crops in batches:
        draws = Draws.of(job.seed, crops.epoch, crops.ids)
        found = []
        for view, pixels in crops.crops.items():
            query = normalise(apply_photometry(pixels.float() / 255, draws, view, config.view))
            if mask is not None:
                maps = None
                if store is not None:
                    maps = store.crop(crops.ids, crops.boxes[view], crops.flips[view], grid)
                pair = Pair(query, query, maps, maps)
                query = mask(pair, draws.fork(view), config.view.grid).query
            elif wanted is not None:  # a mask has filtered already what its encoders see filtered
                query = fill.high_pass(query, wanted["kernel"], wanted["sigma"])
            # whoever sees them: they are this run's views, filtered as this run filters
            found.append(encoder.network(query.contiguous(memory_format=torch.channels_last)))
        yield torch.stack([part.float() for part in found], dim=1)
