"""Photometry of views: colour jitter, grayscale, blur and solarization of whole batches."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from salmask.devices import constant
from salmask.filters import gaussian_blur
from salmask.params.ranges import SharePerView
from salmask.params.view import ViewConfig
from salmask.pieces import change_chosen, in_pieces
from salmask.randomness import Draws

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601
_TINY = 1e-12  # a chroma; smaller ones change no pixel


def apply_photometry(images: Tensor, draws: Draws, view: str, config: ViewConfig) -> Tensor:
    """Applies jitter, grayscale, blur and solarization, each with its probability.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        draws: of the batch.
        view: name of the view. "key" reads the second number of a pair of probabilities, other
            names the first.
        config: section `view`.

    Returns (B, 3, H, W) float32 in [0, 1].
    """
    change = partial(change_colours, view=view, config=config)
    return in_pieces(change, images, random_numbers(draws, view))


def random_numbers(draws: Draws, view: str) -> Tensor:
    """The random numbers of `change_colours`: (B, 9) float32, uniform in [0, 1)."""
    numbers = {"chances": 4, "jitter": 4, "blur": 1}
    return torch.cat([draws.uniform(f"{view}.{name}", n) for name, n in numbers.items()], dim=1)


def change_colours(images: Tensor, u: Tensor, view: str, config: ViewConfig) -> Tensor:
    """`apply_photometry` with given random numbers.

    Jitter has the order brightness, contrast, saturation, hue for all images, whereas torchvision
    draws an order per image.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        u: (B, 9) uniform: whether to jitter, gray, blur and solarize, four of the jitter, sigma.
        view: name of the view.
        config: section `view`.
    """
    blur_p, solarize_p = _value_of(view, config.blur_p), _value_of(view, config.solarize_p)

    def blur(images: Tensor, u: Tensor) -> Tensor:
        low, high = config.blur_sigma
        radius = min(int(3 * high + 0.999), config.size - 1)
        return gaussian_blur(images, 2 * radius + 1, low + (high - low) * u[:, 8])

    changes: list[tuple[float, Callable[[Tensor, Tensor], Tensor]]] = [
        (config.jitter_p, lambda images, u: jitter(images, u[:, 4:8], config.jitter)),
        (config.gray_p, lambda images, u: luma(images).expand_as(images)),
        (blur_p, blur),
        (solarize_p, lambda images, u: solarize(images)),
    ]
    for number, (probability, change) in enumerate(changes):
        if probability > 0:
            chosen = u[:, number] < probability
            images = change_chosen(images, chosen, change, images, u)
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
    low = [max(0.0, 1 - s) for s in strength[:3]]
    spread = [1 + s - lowest for s, lowest in zip(strength, low, strict=False)]
    device = images.device
    factors = constant(tuple(low), device) + constant(tuple(spread), device) * u[:, :3]
    factors = factors[:, :, None, None, None]  # (B, 3, 1, 1, 1)
    images = (images * factors[:, 0]).clamp_(0, 1)
    mean = luma(images.mean(dim=(2, 3), keepdim=True))
    images.mul_(factors[:, 1]).add_((1 - factors[:, 1]) * mean).clamp_(0, 1)
    images.lerp_(luma(images), 1 - factors[:, 2]).clamp_(0, 1)
    return shift_hue(images, (2 * u[:, 3] - 1) * strength[3]) if strength[3] else images


def luma(images: Tensor) -> Tensor:
    """Brightness by ITU-R BT.601: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = constant(_LUMA, images.device)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue of each image in HSV: (B, 3, H, W) in [0, 1] -> the same shape.

    turns: (B,), 1 is a full turn of the colour circle.
    """
    r, g, b = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    sixfold = (value - low).mul_(6)
    # The distance of the hue from red in turns, 1/2 at cyan; negative on the side of blue.
    hue = (g + b).sub_(r).sub_(low).div_(sixfold.clamp(min=_TINY)).add_(1 / 6)
    hue.copysign_(g - b).add_(turns[:, None, None])
    hue.sub_(torch.floor(hue))  # [0, 1): red is 0, green 1/3, blue 2/3
    # Red falls from `value` to `low` between 1/6 and 1/3 turns from its own hue, so it rises
    # between 1/6 and 1/3 turns from cyan. Green and blue fall likewise from their own hues.
    centres = constant((1 / 2, 1 / 3, 2 / 3), images.device)[:, None, None]
    result = (hue[:, None] - centres).abs_().sub_(1 / 6).clamp_(0, 1 / 6).mul_(sixfold[:, None])
    result[:, 0].add_(low)
    result[:, 1:].neg_().add_(value[:, None])
    return result


def _value_of(view: str, value: SharePerView) -> float:
    """The value for a view: the second of a pair is for the key, the first for all others."""
    return value[view == "key"] if isinstance(value, tuple) else value
