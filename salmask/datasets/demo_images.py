"""The images of the demo: textured shapes on plain backgrounds, drawn with numpy.

Each class is a triple (shape, texture, palette). Classes share textures and palettes, so that
neither colour nor texture alone identifies all classes. In `train` and `val`, half of the images
have the background of their class, as habitats in photographs; in `decorrelated`, backgrounds are
independent of the class, which measures how much an encoder relies on them.

Image `index` depends on (seed, split, index) only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
Colour = tuple[float, float, float]

Split = Literal["train", "val", "decorrelated"]
SPLITS: dict[Split, int] = {"train": 1300, "val": 400, "decorrelated": 400}
BACKGROUND_FOLLOWS_CLASS = {"train": 0.5, "val": 0.5, "decorrelated": 0.0}


@dataclass(frozen=True)
class DemoImage:
    """One image with its annotations."""

    image: NDArray[np.uint8]  # (side, side, 3), RGB
    mask: NDArray[np.bool_]  # (side, side), True on the object
    label: int  # index into CLASSES
    background: int  # index into BACKGROUNDS


def _radial(x: Field, y: Field, points: int, inner: float) -> Field:
    """Star polygon: `points` tips at radius 1, notches at `inner`; none for cos(pi / points)."""
    half = np.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)  # fold onto half a tip
    radius = np.hypot(x, y)
    across, along = inner * np.sin(half), 1 - inner * np.cos(half)  # normal of the folded edge
    beyond: Field = across * (radius * np.cos(angle) - 1) + along * radius * np.sin(angle)
    return beyond / float(np.hypot(across, along))


def _cross(x: Field, y: Field) -> Field:
    long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.maximum(long - 0.95, short - 0.33)


def _heart(x: Field, y: Field) -> Field:
    x, y = abs(x), y + 0.12  # a square standing on a corner, with a disk on each upper side
    disk: Field = np.hypot(x - 0.45, y + 0.45) - 0.636
    return np.minimum((x + abs(y) - 0.9) * 0.707, disk)


def _crescent(x: Field, y: Field) -> Field:
    disk: Field = np.hypot(x, y) - 1
    bite: Field = np.hypot(x - 0.5, y) - 0.68
    return np.maximum(disk, -bite)


# Implicit functions of (x, y), y downwards: negative inside; near the outline about the distance.
SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "disk": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.69) - 0.26,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.8,
    "triangle": lambda x, y: _radial(x, y - 0.25, 3, 0.5),
    "hexagon": lambda x, y: _radial(x, y, 6, np.cos(np.pi / 6)),
    "star": lambda x, y: _radial(x, y, 5, 0.52),
    "flower": lambda x, y: np.hypot(x, y) - 0.76 - 0.2 * np.cos(6 * np.arctan2(x, -y)),
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
}

# Functions of (x, y) with a period of about one unit; where positive, the second colour is shown.
TEXTURES: dict[str, Callable[[Field, Field], Field]] = {
    "plain": lambda x, y: np.full_like(x, -1.0),
    "stripes": lambda x, y: np.sin(2 * np.pi * x),
    "checks": lambda x, y: 1.4 * np.sin(np.pi * x) * np.sin(np.pi * y),
    "dots": lambda x, y: np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y) - 0.7,
    "rings": lambda x, y: np.sin(2 * np.pi * np.hypot(x, y)),
}

PALETTES: dict[str, tuple[Colour, Colour]] = {
    "coral": ((0.73, 0.42, 0.38), (0.93, 0.84, 0.71)),
    "teal": ((0.24, 0.47, 0.50), (0.89, 0.82, 0.62)),
    "plum": ((0.47, 0.36, 0.53), (0.90, 0.76, 0.73)),
}

_CLASSES: dict[str, tuple[str, str, str]] = {
    "plain-disk": ("disk", "plain", "coral"),
    "dotted-ring": ("ring", "dots", "teal"),
    "checked-square": ("square", "checks", "plum"),
    "striped-triangle": ("triangle", "stripes", "coral"),
    "ringed-hexagon": ("hexagon", "rings", "teal"),
    "plain-star": ("star", "plain", "plum"),
    "ringed-flower": ("flower", "rings", "coral"),
    "checked-cross": ("cross", "checks", "teal"),
    "dotted-heart": ("heart", "dots", "coral"),
    "striped-crescent": ("crescent", "stripes", "teal"),
}
CLASSES: tuple[str, ...] = tuple(_CLASSES)

# Ten backgrounds: a colour and a brightness pattern of (x, y), approximately in [-1, 1].
# Background i belongs to class i.
BACKGROUNDS: tuple[tuple[Colour, Callable[[Field, Field], Field]], ...] = (
    ((0.60, 0.64, 0.67), lambda x, y: 0 * x),  # wall
    ((0.58, 0.65, 0.58), lambda x, y: y),  # meadow
    ((0.67, 0.62, 0.55), lambda x, y: np.sin(9 * y + 2 * np.sin(2 * x))),  # dunes
    ((0.54, 0.58, 0.66), lambda x, y: 1 - 1.4 * np.hypot(x, y)),  # spotlight
    ((0.64, 0.58, 0.62), lambda x, y: np.sin(12 * (x + y))),  # hatching
    ((0.66, 0.66, 0.57), lambda x, y: np.sign(np.sin(8 * x) * np.sin(8 * y))),  # tiles
    ((0.54, 0.62, 0.62), lambda x, y: x),  # dusk
    ((0.62, 0.60, 0.58), lambda x, y: np.sin(5 * x + 1) * np.sin(4 * y + 3 * x)),  # clouds
    ((0.57, 0.59, 0.54), lambda x, y: np.sin(25 * x) * np.sin(25 * y)),  # weave
    ((0.63, 0.61, 0.68), lambda x, y: np.sin(14 * x)),  # curtain
)


def _grid(side: int) -> tuple[Field, Field]:
    """Pixel centres as x and y in [-1, 1], each (side, side) float64."""
    line = (2 * np.arange(side, dtype=np.float64) + 1) / side - 1
    x, y = np.meshgrid(line, line)
    return x, y


@cache
def _unit_share(shape: str) -> float:
    """Share of the square [-1, 1]^2 that the shape covers at scale 1."""
    x, y = _grid(128)
    return float(np.mean(SHAPES[shape](x, y) < 0))


def render(seed: int, split: str, index: int, side: int = 64) -> DemoImage:
    """Draws image `index` of a split; its label is `index` modulo the number of classes.

    Args:
        seed: of the data set.
        split: a key of `SPLITS`.
        index: any number of at least 0.
        side: of the image, in px. Another side gives the same scene at another resolution; only
            the pixel noise differs.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {sorted(SPLITS)}")
    entropy = np.random.SeedSequence([seed, list(SPLITS).index(split), index])
    rng = np.random.Generator(np.random.Philox(entropy))
    label = index % len(CLASSES)
    shape, texture, palette = _CLASSES[CLASSES[label]]

    follows = rng.random() < BACKGROUND_FOLLOWS_CLASS[split]
    anywhere = int(rng.integers(len(BACKGROUNDS)))
    background = label if follows else anywhere
    tint, relief = BACKGROUNDS[background]
    x, y = _grid(side)
    dx, dy = rng.uniform(-0.3, 0.3, size=2)
    ground = np.array(tint) + 0.07 * relief(x + dx, y + dy)[..., None]

    # Pose: random area, rotation of up to 40 degrees, and a shift that keeps most of it visible.
    scale = np.sqrt(rng.uniform(0.26, 0.52) / _unit_share(shape))
    turn = np.deg2rad(rng.uniform(-40, 40))
    shift_x, shift_y = rng.uniform(-0.24, 0.24, size=2)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    u = cos * (x - shift_x) + sin * (y - shift_y)
    v = cos * (y - shift_y) - sin * (x - shift_x)
    outline = SHAPES[shape](u, v)
    coverage = np.clip(0.5 - outline * scale * side / 2, 0, 1)  # antialiased over one pixel

    # Random period, phase and order of colours: only hue and pattern identify a class.
    period = np.exp(rng.uniform(-0.12, 0.12)) / 2.2
    phase_u, phase_v = rng.uniform(-0.5, 0.5, size=2)
    lead = rng.choice([-1.0, 1.0])
    wave = lead * TEXTURES[texture](u / period + phase_u, v / period + phase_v)
    blend = np.clip(0.5 + 2 * wave, 0, 1)[..., None]
    first, second = (np.array(colour) for colour in PALETTES[palette])
    thing = first + blend * (second - first)
    scene = ground + coverage[..., None] * (thing - ground)

    # Variation that augmentation has as well. No random hue: MoCo could identify images by it.
    contrast, brightness = rng.uniform(0.35, 1.05), rng.uniform(-0.28, 0.28)
    scene = 0.52 + contrast * (scene - 0.62) + brightness
    scene = scene + rng.normal(0, 0.05, size=scene.shape)

    image = np.round(255 * np.clip(scene, 0, 1)).astype(np.uint8)
    return DemoImage(image, outline < 0, label, background)
