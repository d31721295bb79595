"""Photometry of views: colour jitter, grayscale, blur and solarization of whole batches."""

import torch
from torch import Tensor

from salmask.filters import gaussian_blur
from salmask.params.values import PerView
from salmask.params.view import ViewConfig
from salmask.randomness import Draws

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601


def apply_photometry(images: Tensor, draws: Draws, view: str, config: ViewConfig) -> Tensor:
    """Applies jitter, grayscale, blur and solarization, each with its probability.

    Jitter has the order brightness, contrast, saturation, hue for all images, whereas torchvision
    draws an order per image.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        draws: of the batch.
        view: name of the view. "key" reads the second number of a pair of probabilities, other
            names the first.
        config: section `view`.

    Returns (B, 3, H, W) float32 in [0, 1].
    """
    u = draws.uniform(f"{view}.chances", 4)
    blur_p, solarize_p = _value_of(view, config.blur_p), _value_of(view, config.solarize_p)
    if config.jitter_p > 0:
        jittered = jitter(images, draws.uniform(f"{view}.jitter", 4), config.jitter)
        images = _select(u[:, 0] < config.jitter_p, jittered, images)
    if config.gray_p > 0:
        images = _select(u[:, 1] < config.gray_p, luma(images).expand_as(images), images)
    if blur_p > 0:
        low, high = config.blur_sigma
        sigma = low + (high - low) * draws.uniform(f"{view}.blur", 1)[:, 0]
        radius = min(int(3 * high + 0.999), config.size - 1)
        blurred = gaussian_blur(images, 2 * radius + 1, sigma)
        images = _select(u[:, 2] < blur_p, blurred, images)
    if solarize_p > 0:
        images = _select(u[:, 3] < solarize_p, solarize(images), images)
    return images


def solarize(images: Tensor) -> Tensor:
    """1 - x where x >= 0.5, which is 128 of 255 (Grill et al. 2020): any shape -> the same."""
    return torch.where(images >= 0.5, 1 - images, images)


def jitter(images: Tensor, u: Tensor, strength: tuple[float, float, float, float]) -> Tensor:
    """Changes brightness, contrast, saturation and hue, in this order.

    Args:
        images: (B, 3, H, W) in [0, 1].
        u: (B, 4) uniform random numbers, one for each change.
        strength: s of each change. Factors are uniform in [max(0, 1 - s), 1 + s]; the shift of the
            hue is uniform in [-s, s] turns.

    Returns (B, 3, H, W) in [0, 1].
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
    """Brightness by ITU-R BT.601: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue of each image in HSV: (B, 3, H, W) in [0, 1] -> the same shape.

    turns: (B,), 1 is a full turn of the colour circle.
    """
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


def _value_of(view: str, value: PerView) -> float:
    """The value for a view: the second of a pair is for the key, the first for all others."""
    return value[view == "key"] if isinstance(value, tuple) else value


def _select(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition[:, None, None, None], yes, no)
