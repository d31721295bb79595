"""The images that the report shows, and the measurements on them.

Every selection is evenly spaced over the manifest instead of random, so that each report shows the
same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from salmask.data.loader import evaluation_images
from salmask.data.manifest import Manifest, read_image
from salmask.encoders.on_disk import Encoder
from salmask.report.sheets import Neighbour, Query
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore

_CLASSES, _PER_CLASS = 12, 3
_SEARCHED = 1500  # training images among which neighbours are searched: seconds on two cores
_BATCH = 250
_MAX_SIDE = 256  # px of an image on a sheet


@dataclass(frozen=True)
class Overlap:
    """Overlap of the saliency foreground with the true objects.

    Args:
        images: number of images.
        saliency: mean IoU of the foreground in percent.
        everything: mean IoU in percent if every cell is called foreground.
    """

    images: int
    saliency: float
    everything: float


def evenly(ids: Tensor, count: int) -> Tensor:
    """At most `count` of `ids` (n,), evenly spaced and in order."""
    count = min(count, len(ids))
    return ids[torch.arange(count) * len(ids) // max(count, 1)]


def groups(manifest: Manifest, split: str) -> list[tuple[str, list[int]]]:
    """Some rows of a split, grouped by class if there are labels: (class or "", rows)."""
    ids = manifest.ids(split)
    if not manifest.labelled() or not (manifest.labels[ids] >= 0).any():
        rows = evenly(ids, _CLASSES * _PER_CLASS).tolist()
        return [("", rows[i : i + _PER_CLASS]) for i in range(0, len(rows), _PER_CLASS)]
    classes = evenly(manifest.labels[ids][manifest.labels[ids] >= 0].unique(), _CLASSES)
    return [
        (manifest.classes[label], evenly(ids[manifest.labels[ids] == label], _PER_CLASS).tolist())
        for label in classes.tolist()
    ]


def spread(manifest: Manifest, split: str, count: int) -> Tensor:
    """At most `count` rows (n,) int64 of a split, of different classes if there are labels."""
    firsts = [rows for _, rows in groups(manifest, split) if rows]
    return torch.tensor([rows[0] for rows in firsts])[evenly(torch.arange(len(firsts)), count)]


def thumbnails(manifest: Manifest, rows: Sequence[int]) -> list[Image.Image]:
    """The images of some rows, with sides of at most 256 px."""
    images = [read_image(manifest, row, _MAX_SIDE) for row in rows]
    for image in images:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return images


def overlap(manifest: Manifest, store: SaliencyStore, split: str, masks: Path) -> Overlap | None:
    """Compares the foreground of the largest level with true masks, cell by cell.

    A cell belongs to an object if the object covers at least half of it.

    Args:
        manifest: of the images.
        store: with their saliency maps.
        split: the split to compare.
        masks: folder of the true masks, with the paths of the images; masks may be missing.

    Returns:
        None if there is no mask.
    """
    rows = [row for row in manifest.ids(split).tolist() if (masks / manifest.paths[row]).is_file()]
    if not rows:
        return None
    salient = foreground(store.activation(torch.tensor(rows), store.levels[-1]))  # (n,U,V)
    u, v = salient.shape[1:]
    truth = torch.stack([_object_cells(masks / manifest.paths[row], (u, v)) for row in rows])
    return Overlap(len(rows), _iou(salient, truth), _iou(torch.ones_like(salient), truth))


@torch.inference_mode()
def nearest(
    encoder: Encoder, manifest: Manifest, split: str, count: int, neighbours: int
) -> tuple[list[Query], int]:
    """The nearest training images of `count` images of a split, by cosine.

    An image is never its own neighbour.

    Returns:
        One entry per query, and the number of training images that were searched, which are evenly
        spaced.
    """
    queries = spread(manifest, split, count)
    searched = evenly(manifest.ids("train"), _SEARCHED)
    if not len(queries) or not len(searched):
        return [], 0
    similarity = _features(encoder, manifest, queries) @ _features(encoder, manifest, searched).T
    similarity[queries[:, None] == searched] = -torch.inf
    best = similarity.topk(min(neighbours, len(searched) - int(split == "train")), dim=1)
    queried = []
    for i, row in enumerate(queries.tolist()):
        label = int(manifest.labels[row])
        known = manifest.labelled() and label >= 0
        rows = searched[best.indices[i]].tolist()
        parts = zip(rows, thumbnails(manifest, rows), best.values[i].tolist(), strict=True)
        near = [
            Neighbour(r, image, cosine, int(manifest.labels[r]) == label if known else None)
            for r, image, cosine in parts
        ]
        title = manifest.classes[label] if known else ""
        queried.append(Query(title, row, thumbnails(manifest, [row])[0], near))
    return queried, len(searched)


def _object_cells(mask: Path, grid: tuple[int, int]) -> Tensor:
    """The true mask of an image on the saliency grid: (U,V) bool."""
    with Image.open(mask) as image:
        pixels = torch.from_numpy(np.asarray(image.convert("L")).copy()).float() / 255
    return F.adaptive_avg_pool2d(pixels[None], grid)[0] >= 0.5


def _iou(predicted: Tensor, truth: Tensor) -> float:
    """Mean intersection over union of (n,U,V) bool masks, in percent. An empty union counts 0."""
    both = (predicted & truth).sum(dim=(1, 2)).double()
    either = (predicted | truth).sum(dim=(1, 2)).clamp(min=1).double()
    return 100.0 * float((both / either).mean())


def _features(encoder: Encoder, manifest: Manifest, ids: Tensor) -> Tensor:
    """L2-normalised features (n,D) of the evaluation views, on the CPU."""
    device = next(encoder.parameters()).device
    batches = evaluation_images(
        manifest,
        ids,
        encoder.spec.size,
        encoder.spec.shorter,
        batch=_BATCH,
        device=device,
        workers=0,
    )
    return F.normalize(torch.cat([encoder(images) for images in batches]), dim=1).cpu()
