"""How well the learned masks of ADIOS fit the true objects.

    python -m benchmarks.adios_masks --run mocov2-adios [--png masks.png]

Run it in a project's folder after `dvc repro pretrain@RUN`. It reads params.yaml,
artifacts/pretrain/RUN/masker.safetensors, and the images of a split that have a true mask of the
same name in artifacts/data/masks (white on the object), as the demo's images do.

Each pixel of an evaluation view is assigned to the largest of the N masks. The score of an image is
the IoU of its object with the best of its N regions. The table shows means over images in percent,
with 95% bootstrap intervals.

    trained      the run's masker
    untrained    the same masker before training, mean of 3 seeds
    bands        N equal bands, one above the other
    tiles        N equal tiles, 2x2 for N = 4
    everything   one region that covers the image

    own          each object with the regions of its own image
    swapped      each object with the regions of other images, mean of 20 derangements: the score of
                 a masker that has learned where objects usually are, but ignores the image
    own - swapped   the gain from the image itself; an untrained masker can gain too, since it
                 follows edges and colours

The best of N regions also fits by chance, so compare rows. No score here is that of a segmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from salmask import frameworks
from salmask.artifacts import DATA, PRETRAIN
from salmask.data import manifest as manifests
from salmask.data.loader import evaluation_images
from salmask.data.manifest import Manifest
from salmask.data.normalisation import normalise
from salmask.data.resample import centre_crop
from salmask.devices import pick_device
from salmask.encoders import on_disk as encoder_file
from salmask.errors import UserError
from salmask.evaluate.features import validation_split
from salmask.masks import LearnedMask
from salmask.masks.on_disk import load_masker
from salmask.masks.wiring import wire_mask
from salmask.params.run import RunConfig, read_run
from salmask.params.yaml_file import Params
from salmask.report import samples
from salmask.report.sheets import Tile, grid_sheet
from stages.errors import Stage

Scores = NDArray[np.float64]
_DERANGEMENTS = 20
_RESAMPLES = 2000
_SEEDS = 3  # untrained maskers
_BATCH = 200
_SHOWN = 8


@dataclass(frozen=True)
class Scene:
    """Evaluation views and their objects.

    Args:
        rows: (B,) int64, rows of the manifest.
        images: (B,3,S,S) float32 in [0,1].
        objects: (B,S,S) bool.
    """

    rows: Tensor
    images: Tensor
    objects: Tensor


def load(rows: Manifest, masks: Path, split: str, config: RunConfig, folder: Path) -> Scene:
    """The images of a split that have a true mask. Raises UserError when there are none."""
    known = [row for row in rows.ids(split).tolist() if (masks / rows.paths[row]).is_file()]
    if not known:
        raise UserError(
            f"{masks} has no masks for images of `{split}`: a mask has the path of its image, and "
            "is white on the object; the demo (`data: {name: demo}`) has masks"
        )
    size, shorter = config.view.size, encoder_file.describe(folder).spec.shorter
    ids = torch.tensor(known)
    device = torch.device("cpu")
    batches = evaluation_images(rows, ids, size, shorter, batch=_BATCH, device=device, workers=0)
    objects = torch.stack([_object(masks / rows.paths[row], size, shorter) for row in known])
    return Scene(ids, torch.cat(list(batches)), objects)


def _object(path: Path, size: int, shorter: int) -> Tensor:
    """A true mask, resized and cropped as its image: (size,size) bool."""
    with Image.open(path) as image:
        return centre_crop(image.convert("RGB"), size, shorter)[0] >= 128


@torch.inference_mode()
def divide(masker: LearnedMask, images: Tensor) -> Tensor:
    """The soft masks of views in [0,1]: (B,3,S,S) -> (B,N,S,S) on the CPU."""
    masker = masker.to(pick_device()).eval()
    device = next(masker.parameters()).device
    parts = [masker(normalise(part.to(device))).cpu() for part in images.split(_BATCH)]
    return torch.cat(parts)


def untrained(config: RunConfig, seed: int) -> LearnedMask:
    """The run's masker before training, for a seed."""
    torch.manual_seed(seed)
    wiring = frameworks.wiring_of(config.framework, config.train.batch)
    masker = wire_mask(config.mask, wiring, config.view).masker
    assert masker is not None
    return masker


def bands(count: int, side: int) -> Tensor:
    """N bands, one above the other: (side,side) int64, the number of each pixel's region."""
    return (torch.arange(side) * count // side)[:, None].expand(side, side)


def tiles(count: int, side: int) -> Tensor:
    """N tiles in a grid that is as square as possible: (side,side) int64."""
    high = max(n for n in range(1, int(count**0.5) + 1) if count % n == 0)
    wide = count // high
    line = torch.arange(side)
    return (line * high // side)[:, None] * wide + (line * wide // side)


def best_iou(regions: Tensor, objects: Tensor, count: int) -> Scores:
    """The largest IoU in percent of an image's object with one of its regions: (B,).

    Args:
        regions: (B,S,S) int64 below `count`.
        objects: (B,S,S) bool. An empty object scores 0.
        count: number of regions.
    """
    one_hot = torch.nn.functional.one_hot(regions, count).movedim(-1, 1).bool()  # (B,N,S,S)
    target = objects[:, None]
    intersection = (one_hot & target).sum(dim=(2, 3)).double()
    union = (one_hot | target).sum(dim=(2, 3)).clamp(min=1).double()
    scores: Scores = (100 * intersection / union).amax(dim=1).numpy()
    return scores


def derangement(count: int, generator: np.random.Generator) -> Tensor:
    """A random permutation (count,) int64 of one cycle, without fixed points (Sattolo 1986).

    Raises ValueError for fewer than two elements.
    """
    if count < 2:
        raise ValueError("a derangement needs at least two elements")
    order = np.arange(count)
    for last in range(count - 1, 0, -1):
        other = int(generator.integers(last))
        order[[last, other]] = order[[other, last]]
    return torch.from_numpy(order)


def swapped_iou(regions: Tensor, objects: Tensor, count: int) -> Scores:
    """As `best_iou`, with the regions of other images: (B,), means over derangements."""
    generator = np.random.default_rng(0)
    orders = [derangement(len(regions), generator) for _ in range(_DERANGEMENTS)]
    scores: Scores = np.mean([best_iou(regions[o], objects, count) for o in orders], axis=0)
    return scores


def interval(scores: Scores) -> tuple[float, float, float]:
    """The mean of scores (B,) and its 95% bootstrap interval over images."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(scores), size=(_RESAMPLES, len(scores)))
    low, high = np.percentile(scores[drawn].mean(axis=1), [2.5, 97.5])
    return float(scores.mean()), float(low), float(high)


def table(scene: Scene, trained: Tensor, fresh: Sequence[Tensor]) -> str:
    """The scores of soft masks (B,N,S,S), and of fixed divisions, as text."""
    count, side = trained.shape[1], trained.shape[2]
    lines = [f"{'':12}{'own':>22}{'swapped':>22}{'own - swapped':>24}"]
    for name, several in (("trained", [trained]), ("untrained", fresh)):
        regions = [masks.argmax(dim=1) for masks in several]
        own: Scores = np.mean([best_iou(r, scene.objects, count) for r in regions], axis=0)
        swapped: Scores = np.mean([swapped_iou(r, scene.objects, count) for r in regions], axis=0)
        cells = [_cell(scores) for scores in (own, swapped, own - swapped)]
        lines.append(f"{name:12}{cells[0]:>22}{cells[1]:>22}{cells[2]:>24}")
    fixed = {"bands": bands(count, side), "tiles": tiles(count, side)}
    fixed["everything"] = torch.zeros(side, side, dtype=torch.int64)
    for name, division in fixed.items():
        own = best_iou(division.expand_as(scene.objects), scene.objects, count)
        lines.append(f"{name:12}{_cell(own):>22}")
    return "\n".join(lines)


def _cell(scores: Scores) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*interval(scores))


def shares(masks: Tensor) -> str:
    """The mean share of an image that each mask covers, in percent, as text: of the soft mask, and
    of the area where it is the largest."""
    soft = masks.mean(dim=(0, 2, 3))
    hard = torch.bincount(masks.argmax(dim=1).flatten(), minlength=masks.shape[1])
    hard = hard / hard.sum()
    lines = [
        f"{name:12}" + "".join(f"{100 * share:8.1f}" for share in values.tolist())
        for name, values in (("soft", soft), ("largest", hard))
    ]
    return "\n".join([f"{'share of mask':12}" + f"{1:>7}", *lines])


def picture(scene: Scene, labels: Tensor, masks: Tensor, run: str) -> bytes:
    """PNG: images of different classes, their objects, and their masks, white where 1.

    A line surrounds the area where a mask is the largest.

    Args:
        scene: images and objects.
        labels: (B,) int64.
        masks: (B,N,S,S) soft masks.
        run: title.
    """
    firsts = torch.tensor([int((labels == label).nonzero()[0]) for label in labels.unique()])
    some = samples.evenly(firsts if len(firsts) >= _SHOWN else torch.arange(len(masks)), _SHOWN)
    regions = masks[some].argmax(dim=1)

    def gray(values: Tensor) -> NDArray[np.float32]:
        shown: NDArray[np.float32] = values.float()[..., None].expand(-1, -1, 3).numpy()
        return shown

    images = [Tile(image.permute(1, 2, 0).numpy()) for image in scene.images[some]]
    objects = [Tile(gray(one)) for one in scene.objects[some]]
    columns = [
        (f"mask {n + 1}", [Tile(gray(m), cells=r == n) for m, r in zip(part, regions, strict=True)])
        for n, part in enumerate(masks[some].unbind(1))
    ]
    return grid_sheet([("image", images), ("object", objects)], [(run, columns)], len(columns))


@click.command(cls=Stage)
@click.option("--run", "name", required=True, help="A run in params.yaml whose mask is adios.")
@click.option("--split", help="Split of the manifest; by default `val` if it exists.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Masks of 8 images.")
def main(name: str, split: str | None, png: Path | None) -> None:
    """Prints the scores of a run's masks, and the share of the image that each mask covers."""
    config, folder = read_run(Params.read(), name), PRETRAIN / name
    masker = load_masker(folder, config)
    if masker is None:
        raise UserError(f"runs.{name}: its mask is `{config.mask.name}`, which does not learn")
    rows = manifests.load(DATA)
    split = split or validation_split(rows)
    if split not in rows.split_names():
        raise UserError(f"no split `{split}`; choose from {', '.join(rows.split_names())}")
    scene = load(rows, DATA / "masks", split, config, folder)
    if len(scene.rows) < 2:
        raise UserError(f"`{split}` has only one image with a mask; at least two are needed")
    trained = divide(masker, scene.images)
    fresh = [divide(untrained(config, seed), scene.images) for seed in range(_SEEDS)]
    print(f"{name}: {len(scene.rows)} images of {split}, {trained.shape[1]} masks; IoU in percent")
    print(table(scene, trained, fresh))
    print(shares(trained))
    if png:
        png.write_bytes(picture(scene, rows.labels[scene.rows], trained, name))


if __name__ == "__main__":
    main()
