"""Collects the annotated images of a split, and checks them.

An image that is missing or has another size than annotated, an object of an unknown class, and a
box that is empty or outside its image are left out and listed in `Annotations.skipped`; with
`bad="stop"` they raise an error. A box that extends beyond its image is clipped, and listed when it
extends by more than one pixel.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from salmask.data.decode import SIDEWAYS, open_image, orientation_of
from salmask.data.file_bytes import ImageError, open_file
from salmask.datasets.listing import shorten
from salmask.detection.objects import AnnotatedImage, Annotations, Rle, Rule
from salmask.errors import UserError

log = logging.getLogger(__name__)
Bad = Literal["skip", "stop"]
_MAX_LISTED = 10  # problems in one message


@dataclass(frozen=True)
class AnnotatedObject:
    """An object as the source describes it.

    Args:
        name: name of its class.
        box: left, top, right, bottom in px.
        ignored: whether it is not scored.
        area: px^2; None for the area of the box.
        mask: its mask, or None.
    """

    name: str
    box: tuple[float, float, float, float]
    ignored: bool
    area: float | None = None
    mask: Rle | None = None


@dataclass
class AnnotationCollector:
    """Collects usable images and objects, and a list of problems.

    Args:
        classes: names of the classes, in the order of the labels.
        bad: `skip` lists problems, `stop` raises an error for them at the end.
    """

    classes: tuple[str, ...]
    bad: Bad
    images: list[AnnotatedImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    listed_images: int = 0
    listed_objects: int = 0
    turned: list[str] = field(default_factory=list)

    def add_image(
        self,
        file: Path,
        size: tuple[int, int],
        objects: Sequence[AnnotatedObject],
        masks: bool = False,
    ) -> None:
        """Adds an image with its usable objects, or notes why the image cannot be used.

        Args:
            file: the image file.
            size: height and width in px, as annotated.
            objects: all its objects.
            masks: whether the objects have masks.
        """
        self.listed_images += 1
        self.listed_objects += len(objects)
        try:
            with open_file(file) as stream:
                image = open_image(stream)
                (width, height), orientation = image.size, orientation_of(image)
        except ImageError as error:
            self.problems.append(f"{file}: {error}")
            return
        if orientation in SIDEWAYS:
            if (height, width) == tuple(size) and height != width:
                self.problems.append(
                    f"{file}: it is annotated as it is stored ({width}x{height} px), but its EXIF "
                    "data turn it by 90 degrees; save it without EXIF data, or annotate it upright"
                )
                return
            width, height = height, width
        if (height, width) != tuple(size):
            self.problems.append(
                f"{file}: {width}x{height} px, but annotated as {size[1]}x{size[0]}"
            )
            return
        if orientation != 1 and (orientation not in SIDEWAYS or height == width):
            self.turned.append(file.name)  # the size does not show how it was annotated
        usable = [(item, box) for item in objects if (box := self._clipped_box(file, size, item))]
        boxes = np.array([box for _, box in usable], dtype=np.float64).reshape(-1, 4)
        box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).tolist()
        areas = [area if item.area is None else item.area
                 for (item, _), area in zip(usable, box_areas, strict=True)]  # fmt: skip
        self.images.append(
            AnnotatedImage(
                file,
                *size,
                boxes,
                np.array([self.classes.index(item.name) for item, _ in usable], dtype=np.int64),
                np.array([item.ignored for item, _ in usable], dtype=bool),
                np.array(areas, dtype=np.float64),
                tuple(item.mask for item, _ in usable if item.mask is not None) if masks else None,
            )
        )

    def _clipped_box(
        self, file: Path, size: tuple[int, int], item: AnnotatedObject
    ) -> list[float] | None:
        """The box clipped to the image, or None when the object cannot be used."""
        if item.name not in self.classes:
            self.problems.append(
                f"{file}: `{item.name}` is not one of the {len(self.classes)} classes"
            )
            return None
        left, top, right, bottom = item.box
        limits = (size[1], size[0]) * 2
        box = [min(max(edge, 0.0), float(end)) for edge, end in zip(item.box, limits, strict=True)]
        description = f"the box ({', '.join(f'{edge:g}' for edge in item.box)}) of a {item.name}"
        problem = ""
        if not all(map(math.isfinite, item.box)):
            problem = "is not finite"
        elif right <= left or bottom <= top:
            problem = "is empty"
        elif box[2] <= box[0] or box[3] <= box[1]:
            problem = "is outside the image"
        if problem:
            self.problems.append(f"{file}: {description} {problem}")
            return None
        if max(abs(a - b) for a, b in zip(box, item.box, strict=True)) > 1:
            self.problems.append(f"{file}: {description} was clipped to the image")
        return box

    def annotations(self, rule: Rule, source: Path) -> Annotations:
        """All collected images.

        Args:
            rule: the rule that scores detections in them.
            source: the file that lists them, for messages.

        Raises:
            UserError: no image is usable, or there are problems and `bad` is "stop".
        """
        listed = "\n  ".join(self.problems[:_MAX_LISTED])
        if len(self.problems) > _MAX_LISTED:
            listed += f"\n  and {len(self.problems) - _MAX_LISTED} more"
        if not self.images:
            raise UserError(f"no usable image in {source}:\n  {listed or 'it lists no image'}")
        if self.problems and self.bad == "stop":
            raise UserError(
                f"{len(self.problems)} problems in {source}:\n  {listed}\n"
                "Correct them, or leave these images and objects out with `bad: skip`"
            )
        lost = (
            self.listed_images - len(self.images),
            self.listed_objects - sum(map(len, self.images)),
        )
        notes = list(self.notes)
        if any(lost):
            notes.append(
                f"{source.name}: {lost[0]} of {self.listed_images} images and {lost[1]} of "
                f"{self.listed_objects} objects were left out"
            )
        if self.turned:
            notes.append(
                f"{source.name}: EXIF data turn or mirror {len(self.turned)} images of unchanged "
                f"size ({shorten(self.turned)}); their objects are read as annotated on the "
                "upright image"
            )
        if self.problems:
            log.warning("%s: %d left out or clipped:\n  %s", source, len(self.problems), listed)
        return Annotations(
            self.classes, tuple(self.images), rule, tuple(self.problems), tuple(notes)
        )
