"""The variance of features over the views of an image (Chin et al. 2024, Table 7), and alignment
and uniformity (Wang & Isola 2020).

The views are the query views of a pretraining run, masked as in the run, of validation images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask import filters
from salmask.data.loader import Crops, Schedule, training_views
from salmask.data.manifest import Manifest
from salmask.data.normalisation import normalise
from salmask.data.photometry import apply_photometry
from salmask.devices import Precision
from salmask.distributed import gather_uneven, local_batches
from salmask.encoders import on_disk as encoder_file
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.evaluate import Evaluation
from salmask.evaluate.features import set_precision, validation_splits
from salmask.job import Job
from salmask.masks import MASKS
from salmask.masks.options import function_of, input_filter, reads_saliency
from salmask.params.overlay import run_choice
from salmask.params.ranges import AtLeastTwo, PositiveInt
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from salmask.progress import progress
from salmask.randomness import Draws
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Pair

_CHUNK = 2048  # rows and columns of the distance matrix that are computed at once


@dataclass(frozen=True)
class RunViews:
    """The views to measure and the encoder to measure them with.

    Args:
        run: name of the run that makes the views.
        view: its section `view`.
        mask: its section `mask`.
        store: the saliency store, for masks that read saliency.
        encoder: folder of the encoder and its projector.
        through: name of the encoder's run if it is another one.
    """

    run: str
    view: ViewConfig
    mask: Choice
    store: Path
    encoder: Path
    through: str = ""


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    run_views: RunViews,
    *,
    views: AtLeastTwo = 32,
    masked: bool = True,
    batch: PositiveInt = 8,
    images: Literal["stream", "resident"] = "stream",
    precision: Precision = "float32",
) -> dict[str, float]:
    """Variance, alignment and uniformity of each split but `train`. Labels are not used.

    Args:
        encoders: `trained`.
        manifest: the images.
        job: device, seed and folders.
        run_views: the views and the encoder.
        views: number of views per image.
        masked: whether to apply the run's mask. If false, names begin with `variance_unmasked`.
        batch: images at a time, each in all its views.
        images: `stream` reads images from disk; `resident` keeps them on the device.
        precision: of the encoder. `auto` is bfloat16 on CUDA and float32 elsewhere.

    Returns:
        The mean over images; none is a percentage. `variance_pooled` and `variance_pooled_total`
        of pooled features (mean and sum over dimensions), `variance_unit` and
        `variance_unit_total` of these at length 1, `variance_alignment` (mean squared distance of
        two views of an image) and `variance_uniformity` (log mean exp(-2 d^2) over pairs of images,
        one view each) at length 1. The same after the projector: `variance_projected`,
        `variance_projected_unit` and so on. A split other than `val` is a prefix; another run's
        encoder adds `_through_<run>`.

    Raises:
        UserError: for a mask that learns.
    """
    set_precision(encoders, precision)
    _check(run_views.run, run_views.mask, masked)
    name = "variance" if masked else "variance_unmasked"
    name += f"_through_{run_views.through}" if run_views.through else ""
    projector = encoder_file.load_projector(run_views.encoder, job.device)
    heads = {"pooled": nn.Identity(), "projected": projector}
    metrics: dict[str, float] = {}
    for split, prefix in validation_splits(manifest).items():
        ids = manifest.ids(split)
        own = local_batches(ids, batch)
        rows = own if len(own) else ids[:1]  # every process needs the width of the features
        spreads: dict[str, list[Tensor]] = {kind: [] for kind in heads}
        first_views: dict[str, list[Tensor]] = {kind: [] for kind in heads}
        crops = training_views(
            manifest,
            run_views.view,
            Schedule(job.seed, rows, batch, epochs=1, whole=True),
            images=images,
            device=job.device,
            workers=job.workers,
            branches=tuple(f"view{n}" for n in range(views)),
        )
        with progress(f"views of {split}", len(rows)) as bar:
            for pooled in _features(encoders["trained"], manifest, crops, masked, run_views, job):
                for kind, head in heads.items():
                    features = head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
                    unit = F.normalize(features.double(), dim=-1)
                    spreads[kind].append(torch.cat([spread(features), spread(unit)], dim=1))
                    first_views[kind].append(unit[:, 0])
                bar.advance(len(pooled))
        for kind in heads:
            spread_rows = gather_uneven(torch.cat(spreads[kind])[: len(own)])
            unit = gather_uneven(torch.cat(first_views[kind])[: len(own)])
            metrics |= _metrics(f"{prefix}{name}", kind, spread_rows, unit)
    return metrics


def _metrics(name: str, kind: str, spreads: Tensor, unit: Tensor) -> dict[str, float]:
    """Metrics of one kind of features.

    spreads: (n,4), `spread` of the features and of the features at length 1. unit: (n,D), one view
    of each image at length 1.
    """
    mean, total, unit_mean, unit_total = spreads.mean(dim=0).tolist()
    prefix = f"{name}_" if kind == "pooled" else f"{name}_{kind}_"
    metrics = {
        f"{name}_{kind}": mean,
        f"{name}_{kind}_total": total,
        f"{prefix}unit": unit_mean,
        f"{prefix}unit_total": unit_total,
        # E|x - y|^2 over two different views is twice their unbiased variance
        f"{prefix}alignment": 2 * unit_total,
    }
    return metrics | ({f"{prefix}uniformity": uniformity(unit)} if len(unit) > 1 else {})


def spread(features: Tensor) -> Tensor:
    """The unbiased variance of features (n,V,D) over the V views of each image.

    Returns its mean and its sum over dimensions, (n,2) float64.
    """
    variance = features.double().var(dim=1, correction=1)
    return torch.stack([variance.mean(dim=1), variance.sum(dim=1)], dim=1)


def uniformity(unit: Tensor) -> float:
    """The log of the mean of exp(-2 d^2) over pairs of different rows (Wang & Isola 2020, t = 2).

    unit: (n,D) of length 1, n at least 2.
    """
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    blocks = unit.split(_CHUNK)
    for number, block in enumerate(blocks):
        for other in blocks[number:]:
            distance = (2 - 2 * block @ other.T).clamp(min=0)  # squared
            weight = 1 if other is block else 2  # a pair of blocks stands for both orders
            total += weight * torch.exp(-2 * distance).double().sum()
    count = len(unit)
    own = torch.exp(-2 * (2 - 2 * unit.square().sum(dim=1)).clamp(min=0)).double().sum()
    return float(((total - own) / (count * (count - 1))).log())


def _check(run: str, mask: Choice, masked: bool) -> None:
    """Raises UserError for a mask that learns."""
    if masked and MASKS[mask.name].learns:
        raise UserError(
            f"evaluate.variance.masked: the mask of run {run} ({mask.name}) learns, and its masks "
            "are not measured: remove the run, or set `masked: false`"
        )


def _check_runs(params: Params, runs: Sequence[str], options: Mapping[str, Any]) -> None:
    for name in runs:
        _check(name, run_choice(params, name, "mask"), options["masked"])


EVALUATION = Evaluation(run, label="variance of features", main_suffix="_pooled", check=_check_runs)


@torch.no_grad()
def _features(
    encoder: Encoder,
    manifest: Manifest,
    batches: Iterator[Crops],
    masked: bool,
    run_views: RunViews,
    job: Job,
) -> Iterator[Tensor]:
    """Pooled features (B,V,D) float32 of each batch of images, in all their views."""
    view, mask = run_views.view, run_views.mask
    apply_mask = function_of(mask) if masked else None
    high_pass = input_filter(mask, view.size)
    store = None
    if masked and reads_saliency(mask):
        store = SaliencyStore.open(run_views.store, manifest.digest, None, job.device)
    grid = (view.grid, view.grid)
    for crops in batches:
        draws = Draws.of(job.seed, crops.epoch, crops.ids)
        features = []
        for name, pixels in crops.crops.items():
            query = normalise(apply_photometry(pixels.float() / 255, draws, name, view))
            if apply_mask is not None:
                maps = None
                if store is not None:
                    maps = store.crop(crops.ids, crops.boxes[name], crops.flips[name], grid)
                pair = Pair(query, query, maps, maps)
                query = apply_mask(pair, draws.fork(name), view.grid).query
            elif high_pass is not None:  # masks filter already
                query = filters.high_pass(query, high_pass["kernel"], high_pass["sigma"])
            # The views are filtered as in the run that makes them, whichever encoder they go to.
            features.append(encoder.features(query))
        yield torch.stack(features, dim=1)
