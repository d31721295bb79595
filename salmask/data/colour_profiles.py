"""Conversion of decoded images of any mode to RGB: sRGB, on a white background."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageCms

_PROFILE_MODES = ("L", "RGB", "CMYK")  # modes that a colour profile can describe
_SRGB = ImageCms.createProfile("sRGB")
_MAX_DIFFERENCE = 3  # of 255; variants of the sRGB profile differ by less
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a decoded image of any mode with a known range (not I or F) to RGB.

    Transparent pixels become white. An embedded colour profile is applied, unless it is invalid or
    made for another mode.
    """
    flat = _without_alpha(image)
    profile = image.info.get("icc_profile")
    transform = _to_srgb(profile, flat.mode) if profile else None
    if transform is not None:
        return transform.apply(flat)
    return flat if flat.mode == "RGB" else flat.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    """Removes transparency, palette and more than 8 bits: the result is L, RGB, CMYK or LAB."""
    if image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        shown = _over_white(image)
        return shown.convert("L") if image.mode in ("1", "L", "LA") else shown
    return image if image.mode in (*_PROFILE_MODES, "LAB") else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # 16 bits, but the pixels have 8 now
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit gray scaled to 8 bits; pillow would clip the values."""
    values = np.asarray(image)
    clear = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # a TIFF may have 12
    gray = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        gray = 255 - gray
    if clear is not None:
        gray[values == clear] = 255
    return Image.fromarray(gray)


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it is not needed or not possible."""
    if mode not in _PROFILE_MODES:
        return None
    try:
        embedded = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(embedded, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    colours = _sample_colours().convert(mode)
    difference = ImageChops.difference(transform.apply(colours), colours.convert("RGB"))
    return transform if np.asarray(difference).max() > _MAX_DIFFERENCE else None


def _sample_colours() -> Image.Image:
    """An RGB image of all combinations of six levels per channel."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(6, 36, 3))
