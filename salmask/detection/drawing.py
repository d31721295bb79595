"""A sheet of test images: annotated objects on the left, detections on the right."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salmask.detection import rle
from salmask.detection.batches import read_image
from salmask.detection.objects import AnnotatedImage, Annotations, Detections, Rle

_WIDTH, _GAP = 400, 8  # px
_MIN_SCORE = 0.5
_MASK_ALPHA = 0.4
_IGNORED_COLOR = (128, 128, 128)


def sheet(annotations: Annotations, detections: Sequence[Detections], count: int) -> bytes:
    """A PNG file with up to `count` images, evenly spaced in the list.

    Boxes have the name of the class, and detections their score in percent. Detections with a
    score below 50 percent are not drawn. Difficult objects and crowds are gray.
    Equal inputs give equal bytes.
    """
    count = min(count, len(detections))
    rows = np.unique(np.linspace(0, len(detections) - 1, count).round().astype(int))
    pairs = [_pair(annotations, annotations.images[i], detections[i]) for i in rows.tolist()]
    page = _with_margin(torch.cat(pairs, dim=1), bottom_right=False)
    stream = io.BytesIO()
    Image.fromarray(page.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def _pair(annotations: Annotations, image: AnnotatedImage, detections: Detections) -> Tensor:
    """The image with its annotated objects, and with its detections: (3,H,W) uint8."""
    objects = range(len(image))
    left = _drawn(
        image,
        image.boxes,
        [annotations.classes[label] for label in image.labels],
        [_IGNORED_COLOR if image.ignored[i] else _color(image.labels[i]) for i in objects],
        image.masks,
    )
    visible = np.flatnonzero(detections.scores >= _MIN_SCORE)
    labels, scores = detections.labels[visible], 100 * detections.scores[visible]
    masks = detections.masks
    right = _drawn(
        image,
        detections.boxes[visible],
        [
            f"{annotations.classes[i]} {percent:.0f}"
            for i, percent in zip(labels, scores, strict=True)
        ],
        [_color(label) for label in labels],
        None if masks is None else tuple(masks[i] for i in visible),
    )
    return torch.cat([_with_margin(side, bottom_right=True) for side in (left, right)], dim=2)


def _drawn(
    image: AnnotatedImage,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    masks: tuple[Rle, ...] | None,
) -> Tensor:
    """The image at the width of the sheet with boxes, captions and masks: (3,H,W) uint8."""
    from torchvision.transforms.v2.functional import pil_to_tensor, resize  # slow to import
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    pixels = pil_to_tensor(read_image(image))
    if masks:
        inside = torch.from_numpy(rle.decode(masks)).bool()
        pixels = draw_segmentation_masks(pixels, inside, _MASK_ALPHA, list(colors))
    scale = _WIDTH / image.width
    pixels = resize(pixels, [max(1, round(image.height * scale)), _WIDTH], antialias=True)
    if not len(boxes):
        return pixels
    return draw_bounding_boxes(
        pixels,
        torch.from_numpy(boxes * scale),
        list(captions),
        list(colors),
        width=2,
        label_colors="white",
        fill_labels=True,
    )


def _with_margin(pixels: Tensor, bottom_right: bool) -> Tensor:
    """The image (3,H,W) with a white margin at the bottom and right, or at the top and left."""
    sides = (0, _GAP, 0, _GAP) if bottom_right else (_GAP, 0, _GAP, 0)
    return torch.nn.functional.pad(pixels, sides, value=255)


def _color(label: int) -> tuple[int, int, int]:
    """The color of a class; classes with neighbouring labels have different hues."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.85, 0.75)
    return (round(255 * red), round(255 * green), round(255 * blue))
