"""Decoding of image files to upright RGB images.

The format is detected from the content, whatever the file's extension.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from salmask.data.colour_profiles import to_rgb
from salmask.data.file_bytes import ImageError, as_image_errors, open_file

MAX_PIXELS = 178_956_970  # pillow's limit too: a larger image may exhaust the memory
Image.init()
# Not all formats of pillow: it would run another program for an EPS file.
_SUPPORTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
FORMATS = tuple(kind for kind in _SUPPORTED if kind in Image.OPEN)

Image.MAX_IMAGE_PIXELS = None  # `open_image` checks it; pillow would warn at half the limit
warnings.filterwarnings("ignore", module=r"PIL\.")  # unusual metadata does not affect the pixels

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112  # EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange height and width
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: Path, at_least: int | None = None) -> Image.Image:
    """The first image in a file as RGB, rotated by its EXIF orientation.

    Args:
        path: the file. Anything else, such as a pipe, is an error.
        at_least: a side in px. JPEG files are decoded at the smallest of the scales 1, 1/2, 1/4 and
            1/8 at which no side is below it. This is much faster for large photographs.

    Raises ImageError when the file is not a usable image.
    """
    with open_file(path) as stream:
        return load_pixels(open_image(stream), at_least)[0]


def open_image(stream: BinaryIO) -> Image.Image:
    """Reads and checks the header of an image, but not its pixels.

    Raises ImageError if it is not an image, too large, or has pixels of unknown range.
    """
    with as_image_errors():
        start = stream.read(4)
        if not start:
            raise ImageError("empty file")
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            if start.startswith(_SIGNATURES):
                raise ImageError("broken or truncated: its header cannot be read") from None
            raise ImageError(f"not an image (supported formats: {', '.join(FORMATS)})") from None
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"too large: {width}x{height} px, more than {MAX_PIXELS:,}")
        if image.mode in ("I", "F"):
            numbers = "32-bit integers" if image.mode == "I" else "floating-point numbers"
            raise ImageError(f"pixels are {numbers} of unknown range: save it with 8 or 16 bits")
        return image


def load_pixels(
    image: Image.Image, at_least: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes the result of `open_image`, as `decode` does.

    Returns the image, and the size (width, height) of the upright image at full scale. The whole
    file is read at every scale. Raises ImageError.
    """
    with as_image_errors():
        size = image.size
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        image.load()
        orientation = orientation_of(image)
        upright = to_rgb(image)
        if orientation in _ROTATIONS:
            upright = upright.transpose(_ROTATIONS[orientation])
        return upright, size[::-1] if orientation in SIDEWAYS else size


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, which may come after the pixels of a PNG; 1 for none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # invalid metadata raises many types, and the pixels are usable
        return 1
