"""One image file: opened by its content, decoded, upright, RGB."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from salmask.data.colour_profiles import rgb
from salmask.data.file_bytes import ImageError, explained, regular

LARGEST = 178_956_970  # px; beyond it pillow too takes an image for an attack on the memory
Image.init()
# Whatever the extension. Not every kind that pillow knows: for an EPS it would start a program.
_WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
FORMATS = tuple(kind for kind in _WANTED if kind in Image.OPEN)

Image.MAX_IMAGE_PIXELS = None  # `opened` checks instead; pillow would warn from half of it on
warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata harms no pixel

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: Path, at_least: int | None = None) -> Image.Image:
    """The image in a file (of several, the first), turned as its EXIF orientation says, as RGB,
    fully loaded.

    at_least: a side in px. JPEG files are then decoded at the smallest of the scales 1/2, 1/4
    and 1/8 whose sides do not fall below it, which saves most of the time on large photographs.
    Raises ImageError when the file is no usable image. Never waits for a pipe.
    """
    with regular(path) as stream:
        return pixels(opened(stream), at_least)[0]


def opened(stream: BinaryIO) -> Image.Image:
    """The image in a stream, its header read and checked, its pixels not yet.

    Raises ImageError for what is no image, is too large, or has numbers of no known range.
    """
    with explained():
        start = stream.read(4)
        if not start:
            raise ImageError("empty file")
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            if start.startswith(_BEGINNINGS):
                raise ImageError("broken or truncated: its header cannot be read") from None
            raise ImageError(f"not an image (of the kinds {', '.join(FORMATS)})") from None
        width, height = image.size
        if width * height > LARGEST:
            raise ImageError(f"too large: {width}x{height} px, more than {LARGEST:,}")
        if image.mode in ("I", "F"):
            numbers = "32-bit integers" if image.mode == "I" else "floating-point numbers"
            raise ImageError(f"pixels are {numbers} of no known range: save it with 8 or 16 bits")
        return image


def pixels(image: Image.Image, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """What `opened` gave, decoded as `decode` says, and its size (width, height) in full, upright.

    The whole of the file is read and checked at any scale. Raises ImageError.
    """
    with explained():
        size = image.size
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        image.load()
        orientation = _orientation(image)
        shown = rgb(image)
        if orientation not in _TURNS:
            return shown, size
        return shown.transpose(_TURNS[orientation]), size if orientation < 5 else size[::-1]


def _orientation(image: Image.Image) -> int:
    """As EXIF says, which a PNG may do after its pixels; 1 for none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata, in many ways, leaves the pixels as they are
        return 1


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
