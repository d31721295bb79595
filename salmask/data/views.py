"""Two views of an image: where to look (geometry) and how it appears (photometry), apart.

Geometry needs no pixels, so workers can crop while the saliency map is cropped alike elsewhere;
photometry runs on whole batches on the device. Numbers come from `Draws`, so a view depends only
on (seed, epoch, id). Augmentation of MoCo v2 (Chen et al. 2020b) unless params say otherwise.
"""

import torch
from torch import Tensor

from salmask.filters import gaussian_blur
from salmask.params.values import PerView, Range
from salmask.params.view import ViewConfig
from salmask.randomness import Draws

Triple = tuple[float, float, float]  # one number per channel: red, green, blue
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TRIES = 10
_LUMA = (0.299, 0.587, 0.114)

# ------------------------------------------------------------------------------------ geometry


def crop_boxes(draws: Draws, view: str, sizes: Tensor, crop: Range, aspect: Range) -> Tensor:
    """Random resized crops. sizes: (B,2) height, width in px. Returns (B,4) y, x, h, w in [0,1].

    As torchvision's RandomResizedCrop: ten tries at an area share and an aspect ratio, the first
    that fits wins, else the largest central crop with an allowed ratio; boxes are not rounded to
    pixels.
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
    """Which views are mirrored left to right: (B,) bool."""
    return draws.uniform(f"{view}.flip", 1)[:, 0] < probability


# ---------------------------------------------------------------------------------- photometry


def photometry(images: Tensor, draws: Draws, view: str, config: ViewConfig) -> Tensor:
    """Jitter, grayscale, blur, solarization on (B,3,H,W) float32 in [0,1]; returns the same.

    view: "key" reads the second number of a pair of probabilities, any other name the first.
    Jitter runs in one order for all (brightness, contrast, saturation, hue) where torchvision
    draws an order per image.
    """
    chance = draws.uniform(f"{view}.chances", 4)
    blur_p, solarize_p = of_view(config.blur_p, view), of_view(config.solarize_p, view)
    if config.jitter_p > 0:
        jittered = jitter(images, draws.uniform(f"{view}.jitter", 4), config.jitter)
        images = _choose(chance[:, 0] < config.jitter_p, jittered, images)
    if config.gray_p > 0:
        images = _choose(chance[:, 1] < config.gray_p, luma(images).expand_as(images), images)
    if blur_p > 0:
        low, high = config.blur_sigma
        sigma = low + (high - low) * draws.uniform(f"{view}.blur", 1)[:, 0]
        reach = min(int(3 * high + 0.999), config.size - 1)
        blurred = gaussian_blur(images, 2 * reach + 1, sigma)
        images = _choose(chance[:, 2] < blur_p, blurred, images)
    if solarize_p > 0:
        images = _choose(chance[:, 3] < solarize_p, solarize(images), images)
    return images


def of_view(value: PerView, view: str) -> float:
    """The number of a view by name: of [query, key] the second is the key's alone."""
    return value[view == "key"] if isinstance(value, tuple) else value


def solarize(images: Tensor) -> Tensor:
    """1 - x where x >= 0.5, 128 of 255 (Grill et al. 2020): any shape in [0,1] -> the same."""
    return torch.where(images >= 0.5, 1 - images, images)


def jitter(images: Tensor, u: Tensor, strength: tuple[float, float, float, float]) -> Tensor:
    """Brightness, contrast, saturation and hue by the uniforms u (B,4); images (B,3,H,W) in [0,1].

    Factors are uniform in [1 - s, 1 + s], the hue's shift uniform in [-s, s] turns.
    """
    factor = [
        (max(0.0, 1 - s) + u[:, i] * (1 + s - max(0.0, 1 - s)))[:, None, None, None]
        for i, s in enumerate(strength[:3])
    ]
    images = (images * factor[0]).clamp(0, 1)
    mean = luma(images).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, factor[1]).clamp(0, 1)
    images = torch.lerp(luma(images).expand_as(images), images, factor[2]).clamp(0, 1)
    return shift_hue(images, (2 * u[:, 3] - 1) * strength[3]) if strength[3] else images


def luma(images: Tensor) -> Tensor:
    """Brightness by ITU-R 601: (B,3,H,W) -> (B,1,H,W)."""
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns every hue by `turns` (B,), in whole turns: (B,3,H,W) in [0,1] -> the same."""
    r, g, b = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    hue = sector + 6 * turns[:, None, None]
    k = torch.stack([torch.remainder(n + hue, 6) for n in (5.0, 3.0, 1.0)], dim=1)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def normalise(images: Tensor, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> Tensor:
    """(B,3,H,W) in [0,1] -> zero mean, unit deviation by channel statistics: ImageNet's, if no
    others are given."""
    middle = torch.tensor(mean, dtype=images.dtype, device=images.device)
    spread = torch.tensor(std, dtype=images.dtype, device=images.device)
    return (images - middle[:, None, None]) / spread[:, None, None]


def _choose(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], yes, no)
