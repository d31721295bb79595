"""Geometry of views: random crops and flips.

Geometry needs no pixels: images and saliency maps are cropped by the same boxes in different
places. All numbers come from `Draws`, so that a view depends on (seed, epoch, id) only. The
defaults are the augmentation of MoCo v2 (Chen et al. 2020b).
"""

import torch
from torch import Tensor

from salmask.params.ranges import PositiveRange
from salmask.params.view import ViewConfig
from salmask.randomness import Draws

BRANCHES = ("query", "key")
_TRIES = 10

Geometry = tuple[dict[str, Tensor], dict[str, Tensor]]  # boxes and flips by branch


def branch_names(extra_views: int = 0) -> tuple[str, ...]:
    """The names of the views of an image: query, key, extra0, extra1, ..."""
    return (*BRANCHES, *(f"extra{n}" for n in range(extra_views)))


def view_geometry(
    sizes: Tensor,
    config: ViewConfig,
    seed: int,
    epoch: int,
    ids: Tensor,
    branches: tuple[str, ...] = BRANCHES,
) -> Geometry:
    """The crops and flips of the views of some images in one epoch.

    Args:
        sizes: (B, 2) int64, height and width of the images in px.
        config: section `view`.
        seed: of the run.
        epoch: number of the epoch.
        ids: (B,) int64, rows of the manifest.
        branches: names of the views.

    Returns boxes (B, 4) float32 and flips (B,) bool, both by branch.
    """
    draws = Draws.of(seed, epoch, ids)
    boxes = {b: crop_boxes(draws, b, sizes, config.crop, config.aspect) for b in branches}
    return boxes, {b: flips(draws, b, config.flip) for b in branches}


def crop_boxes(
    draws: Draws, view: str, sizes: Tensor, crop: PositiveRange, aspect: PositiveRange
) -> Tensor:
    """Boxes of random resized crops, as torchvision's RandomResizedCrop draws them.

    Of ten random areas and aspect ratios the first that fits is used, or else the largest central
    crop with an allowed ratio. Unlike torchvision's, boxes are not rounded to pixels.

    Args:
        draws: of the batch.
        view: name of the view.
        sizes: (B, 2) int64, height and width of the images in px.
        crop: range of the area, as a share of the image.
        aspect: range of width / height.

    Returns (B, 4) float32: y, x, height and width in [0, 1].
    """
    height, width = sizes.double().unbind(1)
    u = draws.uniform(f"{view}.crop", _TRIES, 2).double()
    area = crop[0] + (crop[1] - crop[0]) * u[..., 0]
    low, high = torch.tensor(aspect, dtype=torch.float64).log().tolist()
    ratio = torch.exp(low + (high - low) * u[..., 1])  # width / height in px
    shape = (width / height)[:, None]
    h = torch.sqrt(area * shape / ratio)
    w = torch.sqrt(area * ratio / shape)
    fits = (h <= 1) & (w <= 1)
    first = torch.argmax(fits.int(), dim=1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    clamped = shape[:, 0].clamp(*aspect)
    h = torch.where(fits.any(1), h, (shape[:, 0] / clamped).clamp(max=1))
    w = torch.where(fits.any(1), w, (clamped / shape[:, 0]).clamp(max=1))
    corner = draws.uniform(f"{view}.corner", 2).double()
    corner = torch.where(fits.any(1)[:, None], corner, 0.5)
    return torch.stack([corner[:, 0] * (1 - h), corner[:, 1] * (1 - w), h, w], 1).float()


def flips(draws: Draws, view: str, probability: float) -> Tensor:
    """Which views are flipped horizontally: (B,) bool."""
    return draws.uniform(f"{view}.flip", 1)[:, 0] < probability


def flip_images(images: Tensor, flip: Tensor) -> Tensor:
    """Flips the images (B, C, H, W) horizontally where `flip` (B,) bool is True."""
    return torch.where(flip[:, None, None, None], images.flip(-1), images)
