"""Crops and resizes of decoded images."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resample(
    image: Image.Image, size: tuple[int, int], box: Tensor | None = None, flip: bool = False
) -> Tensor:
    """Crops and resizes an image, bilinearly with antialiasing.

    Args:
        image: RGB.
        size: (height, width) of the result in px.
        box: (4,) y, x, height and width in [0, 1], not rounded to pixels; None for the whole image.
        flip: whether the result is flipped horizontally.

    Returns (3, height, width) uint8.
    """
    area = None
    if box is not None:
        y, x, h, w = box.tolist()
        right = min((x + w) * image.width, image.width)
        bottom = min((y + h) * image.height, image.height)
        area = (x * image.width, y * image.height, right, bottom)
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=area)
    if flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def centre_crop(image: Image.Image, size: int, shorter: int) -> Tensor:
    """The view for evaluations: a resize and a centre crop, in one resampling.

    Args:
        image: RGB.
        size: side of the crop in px.
        shorter: length in px to which the shorter side of the image is resized.

    Returns (3, size, size) uint8.
    """
    scale = min(image.height, image.width) / shorter * size
    h, w = min(scale / image.height, 1.0), min(scale / image.width, 1.0)
    return resample(image, (size, size), torch.tensor([(1 - h) / 2, (1 - w) / 2, h, w]))
