"""Images with coloured rectangles on gray, and tiny encoders and detectors for them."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from salmask.detection import rle
from salmask.detection.detector import Detector
from salmask.detection.objects import AnnotatedImage, Annotations
from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.params.encoder import EncoderConfig

CLASSES = ("red", "blue")
SIDE = 64  # px
TINY = {"anchors": (16, 32), "regions": 16}


def encoder(stem="small2", blur=None) -> Encoder:
    config = EncoderConfig("resnet10", 8, stem)
    return Encoder(build_encoder(config, seed=0), config, InputSpec(SIDE, SIDE, blur)).eval()


def detector(**options) -> Detector:
    return Detector(encoder(), 2, **(TINY | options))


def drawn(folder, count, rule="coco", masks=True, seed=0) -> Annotations:
    """Images with two objects each, except the last one, which has none."""
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True, parents=True)
    images = []
    for number in range(count):
        pixels = np.full((SIDE, SIDE + 16, 3), 128, np.uint8)
        boxes, shapes = [], []
        for label in range(2 if number < count - 1 else 0):
            left, top = generator.integers(0, 12, 2) + np.array([0, 32 * label])
            right, bottom = left + generator.integers(20, 50), top + generator.integers(16, 20)
            pixels[top:bottom, left:right] = (220, 30, 30) if label == 0 else (30, 30, 220)
            shape = np.zeros((SIDE, SIDE + 16), bool)
            shape[top:bottom, left:right] = True
            boxes.append([left, top, right, bottom])
            shapes.append(shape)
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        box = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        runs = rle.encode(np.array(shapes)) if shapes else ()
        images.append(
            AnnotatedImage(
                file,
                SIDE,
                SIDE + 16,
                box,
                np.arange(len(box), dtype=np.int64),
                np.zeros(len(box), bool),
                (box[:, 2:] - box[:, :2]).prod(axis=1),
                runs if masks else None,
            )
        )
    return Annotations(CLASSES, tuple(images), rule)


def with_ignored(annotations: Annotations, *first: bool) -> Annotations:
    """The annotations with new `ignored` flags of the first image's objects."""
    image = replace(annotations.images[0], ignored=np.array(first))
    return replace(annotations, images=(image, *annotations.images[1:]))


def noise(*sizes) -> list[torch.Tensor]:
    """Random images (3,H,W) of the given sizes (height, width)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]
