"""Normalisation of images by the statistics of their channels."""

from torch import Tensor

from salmask.devices import constant

PerChannel = tuple[float, float, float]  # red, green, blue
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(
    images: Tensor, mean: PerChannel = IMAGENET_MEAN, std: PerChannel = IMAGENET_STD
) -> Tensor:
    """Subtracts the mean and divides by the standard deviation: (B, 3, H, W) -> the same shape.

    Args:
        images: values in [0, 1].
        mean: of each channel.
        std: of each channel.
    """
    centre, scale = (constant(values, images.device)[:, None, None] for values in (mean, std))
    return (images - centre).div_(scale)
