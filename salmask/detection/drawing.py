"""A sheet of pictures: what is there on the left, what was found on the right."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_masks

from salmask.detection.batches import read
from salmask.detection.objects import Annotations, Detections, Rle

_WIDE, _GAP, _LINE = 400, 8, 16  # px
_SURE = 0.5  # the least score that is shown
_VEIL = 0.4  # how much of its class's colour lies over a mask


def sheet(annotations: Annotations, found: Sequence[Detections], count: int) -> bytes:
    """A PNG file with up to `count` pictures, evenly spread; nothing in it is left to chance.

    Boxes with the class, for detections the score in percent (from 50 on), masks where there are
    any; difficult objects and crowds in gray.
    """
    rows = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    pairs = [_pair(annotations, index, found[index]) for index in rows.tolist()]
    wide = 2 * _WIDE + 3 * _GAP
    page = Image.new("RGB", (wide, sum(p.height + _GAP for p in pairs) + _GAP), "white")
    top = _GAP
    for pair in pairs:
        page.paste(pair, (_GAP, top))
        top += pair.height + _GAP
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()


def _pair(annotations: Annotations, index: int, seen: Detections) -> Image.Image:
    picture = annotations.pictures[index]
    image = read(picture)
    there = [annotations.classes[label] for label in picture.labels]
    hues = [None if ignored else label for label, ignored in
            zip(picture.labels.tolist(), picture.ignored, strict=True)]  # fmt: skip
    truth = _drawn(image, picture.boxes, there, hues, picture.masks)
    sure = np.flatnonzero(seen.scores >= _SURE)
    names = [f"{annotations.classes[seen.labels[i]]} {100 * seen.scores[i]:.0f}" for i in sure]
    masks = None if seen.masks is None else tuple(seen.masks[i] for i in sure)
    labels = [int(seen.labels[i]) for i in sure]
    guess = _drawn(image, seen.boxes[sure], names, labels, masks)
    pair = Image.new("RGB", (2 * _WIDE + _GAP, truth.height), "white")
    pair.paste(truth, (0, 0))
    pair.paste(guess, (_WIDE + _GAP, 0))
    return pair


def _drawn(
    image: Image.Image,
    boxes: np.ndarray,
    names: Sequence[str],
    hues: Sequence[int | None],
    masks: tuple[Rle, ...] | None,
) -> Image.Image:
    scale = _WIDE / image.width
    if masks:
        pixels = np.array(image, dtype=np.float32)
        for mask, hue in zip(masks, hues, strict=True):
            inside = coco_masks.decode([mask])[..., 0] > 0
            pixels[inside] += _VEIL * (np.array(_colour(hue)) - pixels[inside])
        image = Image.fromarray(pixels.round().astype(np.uint8))
    shown = image.resize((_WIDE, max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(shown)
    for box, name, hue in zip((boxes * scale).tolist(), names, hues, strict=True):
        pen.rectangle(box, outline=_colour(hue), width=2)
        start = (box[0] + 3, min(max(box[1], 0), shown.height - _LINE))
        pen.rectangle(pen.textbbox(start, name, _FONT), fill=_colour(hue))
        pen.text(start, name, "white", _FONT)
    return shown


def _colour(hue: int | None) -> tuple[int, int, int]:
    """A class's own; gray for what counts neither way."""
    if hue is None:
        return (128, 128, 128)
    red, green, blue = colorsys.hsv_to_rgb(hue * 0.618 % 1, 0.85, 0.75)  # neighbours lie apart
    return (round(255 * red), round(255 * green), round(255 * blue))


_FONT = ImageFont.load_default(12)
