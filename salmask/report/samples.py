"""Which images the report shows, and what it measures on them. Every choice is an even spacing
over the manifest: no randomness, so that two runs of `report` show the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from salmask.data.loader import centred
from salmask.data.manifest import Manifest, read_image
from salmask.encoders.on_disk import Encoder
from salmask.report.sheets import Neighbour
from salmask.saliency.scda import foreground
from salmask.saliency.store import SaliencyStore

_CLASSES, _PER_CLASS = 12, 3
_BANK = 1500  # training images that neighbours are looked for among: seconds on two cores
_BATCH = 250
_SHOWN_SIDE = 256  # px that a picture on a sheet has at the most


@dataclass(frozen=True)
class Overlap:
    """Mean IoU in percent with the true objects, over `images`: of the foreground that saliency
    finds, and of a foreground that covers everything."""

    images: int
    saliency: float
    everything: float


@dataclass(frozen=True)
class Found:
    """The pictures nearest to a query. title: its class, or its place."""

    title: str
    query: int
    rows: Sequence[int]
    cosines: Sequence[float]


def evenly(ids: Tensor, count: int) -> Tensor:
    """At most `count` of `ids` (n,), evenly spaced, in order."""
    count = min(count, len(ids))
    return ids[torch.arange(count) * len(ids) // max(count, 1)]


def validation_split(manifest: Manifest) -> str:
    """`val` where there is one, else the first split that is not for training, else `train`."""
    names = manifest.split_names()
    return "val" if "val" in names else next((n for n in names if n != "train"), "train")


def groups(manifest: Manifest, split: str) -> list[tuple[str, list[int]]]:
    """Some rows of a split, by class where there are classes: (class name or "", rows)."""
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
    """`count` rows (n,) of a split: of different classes where there are classes."""
    firsts = [rows for _, rows in groups(manifest, split) if rows]
    return torch.tensor([rows[0] for rows in firsts])[evenly(torch.arange(len(firsts)), count)]


def pictures(manifest: Manifest, rows: Sequence[int]) -> list[Image.Image]:
    """The images of some rows, no larger than a sheet can show."""
    images = [read_image(manifest, row, _SHOWN_SIDE) for row in rows]
    for image in images:
        image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return images


def overlap(manifest: Manifest, store: SaliencyStore, split: str, masks: Path) -> Overlap | None:
    """How well the largest level's foreground meets the true masks in the folder `masks`, cell by
    cell; a cell is the object's where the object covers half of it. None where no masks are."""
    rows = [row for row in manifest.ids(split).tolist() if (masks / manifest.paths[row]).is_file()]
    if not rows:
        return None
    found = foreground(store.activation(torch.tensor(rows), store.levels[-1]))  # (n,U,V)
    u, v = found.shape[1:]
    truth = torch.stack([_cells(masks / manifest.paths[row], (u, v)) for row in rows])
    return Overlap(len(rows), _iou(found, truth), _iou(torch.ones_like(found), truth))


def _cells(mask: Path, grid: tuple[int, int]) -> Tensor:
    """The true mask of an image on the saliency grid: (U,V) bool."""
    with Image.open(mask) as image:
        pixels = torch.from_numpy(np.asarray(image.convert("L")).copy()).float() / 255
    return F.adaptive_avg_pool2d(pixels[None], grid)[0] >= 0.5


def _iou(found: Tensor, truth: Tensor) -> float:
    """Mean intersection over union in percent: (n,U,V) bool each; images without an object, and
    nothing found, count as 0."""
    both = (found & truth).sum(dim=(1, 2)).double()
    either = (found | truth).sum(dim=(1, 2)).clamp(min=1).double()
    return 100.0 * float((both / either).mean())


@torch.inference_mode()
def nearest(
    encoder: Encoder, manifest: Manifest, split: str, count: int, neighbours: int
) -> tuple[list[Found], int]:
    """The training images closest by cosine to `count` images of a split.

    Returns what was found, and how many training images were searched: an even sample of them. A
    query is never its own neighbour.
    """
    queries = spread(manifest, split, count)
    bank = evenly(manifest.ids("train"), _BANK)
    if not len(queries) or not len(bank):
        return [], 0
    similarity = _features(encoder, manifest, queries) @ _features(encoder, manifest, bank).T
    similarity[queries[:, None] == bank] = -torch.inf
    best = similarity.topk(min(neighbours, len(bank) - int(split == "train")), dim=1)
    found = []
    for i, row in enumerate(queries.tolist()):
        label = int(manifest.labels[row])
        title = manifest.classes[label] if manifest.labelled() and label >= 0 else ""
        rows, cosines = bank[best.indices[i]].tolist(), best.values[i].tolist()
        found.append(Found(title, row, rows, cosines))
    return found, len(bank)


def _features(encoder: Encoder, manifest: Manifest, ids: Tensor) -> Tensor:
    """L2-normalised features of the evaluation views: (n,D) on the CPU."""
    device = next(encoder.parameters()).device
    batches = centred(
        manifest,
        ids,
        encoder.spec.size,
        encoder.spec.shorter,
        batch=_BATCH,
        device=device,
        workers=0,
    )
    return F.normalize(torch.cat([encoder(images) for images in batches]), dim=1).cpu()


def judged(manifest: Manifest, found: Found) -> list[Neighbour]:
    """The pictures of what was found, each with whether its class is the query's."""
    label = int(manifest.labels[found.query])
    known = manifest.labelled() and label >= 0
    images = pictures(manifest, found.rows)
    return [
        Neighbour(image, cosine, int(manifest.labels[row]) == label if known else None)
        for image, row, cosine in zip(images, found.rows, found.cosines, strict=True)
    ]
