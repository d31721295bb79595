"""From whatever pixels a file holds to RGB as screens show it: sRGB, over white."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageCms

_PROFILED = ("L", "RGB", "CMYK")  # modes that profiles are made for
_SRGB = ImageCms.createProfile("sRGB")
_VISIBLE = 3  # of 255; profiles that all mean sRGB differ by less
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF


def rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode with a known range (not I, not F) as RGB.

    What is transparent shows white. An embedded colour profile is applied, unless it is broken or
    belongs to another kind of image.
    """
    flat = _flat(image)
    profile = image.info.get("icc_profile")
    transform = _to_srgb(profile, flat.mode) if profile else None
    if transform is not None:
        return transform.apply(flat)
    return flat if flat.mode == "RGB" else flat.convert("RGB")


def _flat(image: Image.Image) -> Image.Image:
    """Without transparency, palette or more than 8 bits: L, RGB, CMYK or LAB."""
    if image.mode.startswith("I;16"):
        return _of_16_bits(image)
    if image.has_transparency_data:
        shown = _over_white(image)
        return shown.convert("L") if image.mode in ("1", "L", "LA") else shown
    return image if image.mode in (*_PROFILED, "LAB") else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits; the pixels are 8 by now
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    seen = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(seen, mask=seen)
    return white


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Gray, scaled; pillow would clip it."""
    values = np.asarray(image)
    clear = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # a TIFF may hold 12
    gray = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # zero is white
        gray = 255 - gray
    if clear is not None:
        gray[values == clear] = 255
    return Image.fromarray(gray)


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB, or None where there is nothing (sensible) to do."""
    if mode not in _PROFILED:
        return None
    try:
        embedded = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(embedded, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    plain = _some_colours().convert(mode)
    moved = ImageChops.difference(transform.apply(plain), plain.convert("RGB"))
    return transform if np.asarray(moved).max() > _VISIBLE else None


def _some_colours() -> Image.Image:
    """Six levels of each channel, all combinations, as an RGB image."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(6, 36, 3))
