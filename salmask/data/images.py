"""One image file: opened, upright, RGB."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def decode(path: Path, at_least: int | None = None) -> Image.Image:
    """The image in a file, turned as its EXIF orientation says, as RGB, fully loaded.

    at_least: a side in px. JPEG files are then decoded at the smallest of the scales 1/2, 1/4
    and 1/8 whose sides do not fall below it, which saves most of the time on large photographs.
    Raises OSError (or another of pillow's errors) when the file cannot be read.
    """
    with Image.open(path) as image:
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits a channel; pillow would clip, not scale
            upright = upright.point(lambda value: value * (1 / 257)).convert("L")
        return upright.convert("RGB")


def resample(image: Image.Image, size: tuple[int, int], box: Tensor | None = None) -> Tensor:
    """`box` of an image (all of it by default) resampled to size (height, width) px.

    box: (4,) y, x, h, w as shares of the image, not rounded to pixels. Bilinear with
    antialiasing. Returns (3, height, width) uint8.
    """
    area = None
    if box is not None:
        y, x, h, w = box.tolist()
        right = min((x + w) * image.width, image.width)
        bottom = min((y + h) * image.height, image.height)
        area = (x * image.width, y * image.height, right, bottom)
    small = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=area)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def centre(image: Image.Image, size: int, shorter: int) -> Tensor:
    """The evaluation view: shorter side to `shorter` px, centre crop of `size` px.

    Both steps are one resampling. Returns (3, size, size) uint8.
    """
    scale = min(image.height, image.width) / shorter * size
    h, w = min(scale / image.height, 1.0), min(scale / image.width, 1.0)
    return resample(image, (size, size), torch.tensor([(1 - h) / 2, (1 - w) / 2, h, w]))
