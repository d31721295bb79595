"""Readers of annotated images: PASCAL VOC's folders and COCO's JSON.

What cannot be used is skipped and listed in `Annotations.skipped`, or refused with
`bad="stop"`: an image that is missing or of another size, an object of no known class, a box that
is empty or lies outside its image. One that sticks out is cut to the image, and listed if by more
than a pixel.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as coco_masks

from salmask.data.decode import open_image
from salmask.data.file_bytes import ImageError, open_file
from salmask.detection.objects import Annotations, Picture, Rle
from salmask.errors import UserError

log = logging.getLogger(__name__)
Bad = Literal["skip", "stop"]
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")
_TOLD = 10  # problems that a message lists
_LARGEST = 1 << 16  # px; of a side
_ODD = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def voc(
    folder: Path, split: str, classes: Sequence[str] = VOC_CLASSES, bad: Bad = "skip"
) -> Annotations:
    """A split (`trainval`, `test`, ...) of a folder with Annotations/, ImageSets/Main/ and
    JPEGImages/; boxes are 1-based pixels, the last one included; difficult objects are `ignored`.

    Raises UserError when the list of the split is missing or empty, and when nothing is usable.
    """
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    lines = _text(listed).splitlines()
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not names:
        raise UserError(f"{listed} names no image")
    taken = _Taken(tuple(classes), bad)
    for name in names:
        described = folder / "Annotations" / f"{name}.xml"
        try:
            root = ElementTree.fromstring(_text(described))
            size = (_number(root, "size/height"), _number(root, "size/width"))
            objects = list(_voc_objects(root))
        except (UserError, ElementTree.ParseError, ValueError, OverflowError) as error:
            taken.problem(f"{described}: {error}")
            continue
        files = [folder / "JPEGImages" / f"{name}{suffix}" for suffix in _SUFFIXES]
        taken.picture(next((f for f in files if f.exists()), files[0]), size, objects)
    return taken.annotations("voc", listed)


def coco(file: Path, images: Path, masks: bool | None = False, bad: Bad = "skip") -> Annotations:
    """A file in COCO's format and the folder of its images. Crowds are `ignored`. Ids of any kind;
    classes in the order of their category ids. masks: read them, and skip objects without; None:
    where all objects have some.

    Raises UserError when the file is missing or is no such file, and when nothing is usable.
    """
    try:
        told = json.loads(_text(file))
        ids = {c["id"]: str(c["name"]) for c in sorted(told["categories"], key=lambda c: c["id"])}
        listed = {image["id"]: image for image in told["images"]}
        entries = [(int(a["id"]), a["image_id"], dict(a)) for a in told["annotations"]]
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    except (*_ODD, RecursionError) as error:
        raise UserError(f"{file} is not in COCO's format: {error!r} is missing or odd") from None
    if masks is None:
        masks = bool(entries) and all(entry.get("segmentation") for _, _, entry in entries)
    if len(set(ids.values())) < len(ids):
        raise UserError(f"{file}: several categories have one name")
    taken = _Taken(tuple(ids.values()), bad)
    by_image: dict[Any, list[_Object]] = defaultdict(list)
    for number, image_id, entry in entries:
        try:
            image = listed[image_id]
            by_image[image_id].append(_coco_object(entry, ids, image, masks))
        except _ODD as error:
            taken.problem(f"{file}: annotation {number}: {_reason(error)}")
    for image_id, image in listed.items():
        try:
            place, size = images / image["file_name"], (int(image["height"]), int(image["width"]))
        except _ODD as error:
            taken.problem(f"{file}: image {image_id}: {_reason(error)}")
            continue
        taken.picture(place, size, by_image[image_id], masks)
    return taken.annotations("coco", file)


def joined(*parts: Annotations) -> Annotations:
    """Several sources as one, such as VOC 2007 and 2012. Raises UserError where classes differ."""
    if len({(part.classes, part.rule) for part in parts}) != 1:
        raise UserError("annotations of different classes or rules cannot be joined")
    pictures = tuple(picture for part in parts for picture in part.pictures)
    skipped = tuple(line for part in parts for line in part.skipped)
    return Annotations(parts[0].classes, pictures, parts[0].rule, skipped)


@dataclass(frozen=True)
class _Object:
    """As the source tells it. box: left, top, right, bottom in px. area: px, None for the box's."""

    name: str
    box: tuple[float, float, float, float]
    ignored: bool
    area: float | None = None
    mask: Rle | None = None


@dataclass
class _Taken:
    """Collects what is usable and notes what is not."""

    classes: tuple[str, ...]
    bad: Bad
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def problem(self, said: str) -> None:
        self.problems.append(said)

    def picture(
        self, file: Path, size: tuple[int, int], objects: Sequence[_Object], masks: bool = False
    ) -> None:
        """Takes an image (size: height, width) and those of its objects that are usable."""
        try:
            with open_file(file) as stream:
                width, height = open_image(stream).size
        except ImageError as error:
            return self.problem(f"{file}: {error}")
        if sorted((height, width)) != sorted(size):  # a photograph may be stored on its side
            return self.problem(f"{file}: {width}x{height} px, annotated as {size[1]}x{size[0]}")
        kept = [(some, box) for some in objects if (box := self._box(file, size, some))]
        boxes = np.array([box for _, box in kept], dtype=np.float64).reshape(-1, 4)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        told = [area if some.area is None else some.area
                for (some, _), area in zip(kept, areas.tolist(), strict=True)]  # fmt: skip
        self.pictures.append(
            Picture(
                file,
                *size,
                boxes,
                np.array([self.classes.index(some.name) for some, _ in kept], dtype=np.int64),
                np.array([some.ignored for some, _ in kept], dtype=bool),
                np.array(told, dtype=np.float64),
                tuple(some.mask for some, _ in kept if some.mask is not None) if masks else None,
            )
        )

    def _box(self, file: Path, size: tuple[int, int], some: _Object) -> list[float] | None:
        """The box within the image, or None for an object that is none."""
        left, top, right, bottom = some.box
        limits = (size[1], size[0]) * 2
        cut = [min(max(edge, 0.0), float(end)) for edge, end in zip(some.box, limits, strict=True)]
        said = ""
        if not all(map(math.isfinite, some.box)):
            said = "is not in numbers"
        elif right <= left or bottom <= top:
            said = "is empty"
        elif cut[2] <= cut[0] or cut[3] <= cut[1]:
            said = "is outside the image"
        if some.name not in self.classes:
            self.problem(f"{file}: `{some.name}` is none of the {len(self.classes)} classes")
            return None
        box = f"the box ({', '.join(f'{edge:g}' for edge in some.box)}) of a {some.name}"
        if said:
            self.problem(f"{file}: {box} {said}")
            return None
        if max(abs(a - b) for a, b in zip(cut, some.box, strict=True)) > 1:
            self.problem(f"{file}: {box} was cut to the image")
        return cut

    def annotations(self, rule: Literal["voc", "coco"], source: Path) -> Annotations:
        """Everything taken. Raises UserError if that is nothing, or if bad is "stop"."""
        said = "\n  ".join(self.problems[:_TOLD])
        if len(self.problems) > _TOLD:
            said += f"\n  and {len(self.problems) - _TOLD} more"
        if not self.pictures or (self.problems and self.bad == "stop"):
            what = "there are problems in" if self.pictures else "no image is usable of"
            raise UserError(f"{what} {source}:\n  {said or 'it lists none'}")
        if self.problems:
            log.warning("%s: %d left out or cut:\n  %s", source, len(self.problems), said)
        return Annotations(self.classes, tuple(self.pictures), rule, tuple(self.problems))


def _voc_objects(root: ElementTree.Element) -> Iterator[_Object]:
    for item in root.iter("object"):
        edges = [_number(item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        box = (edges[0] - 1, edges[1] - 1, edges[2], edges[3])  # 1..W inclusive -> 0..W
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        yield _Object((item.findtext("name") or "").strip(), box, difficult)


def _number(item: ElementTree.Element, path: str) -> int:
    """Some tools write fractions where VOC has whole pixels."""
    text = item.findtext(path)
    if text is None:
        raise ValueError(f"<{path}> is missing")
    return round(float(text))


def _coco_object(
    entry: Mapping[str, Any], names: Mapping[Any, str], image: Mapping[str, Any], masks: bool
) -> _Object:
    left, top, width, height = (float(value) for value in entry["bbox"])
    mask = (
        _mask(entry["segmentation"], int(image["height"]), int(image["width"])) if masks else None
    )
    area = entry.get("area")
    if area is None and mask is not None:
        area = coco_masks.area(mask)
    return _Object(
        names[entry["category_id"]],
        (left, top, left + width, top + height),
        bool(entry.get("iscrowd", 0)),
        None if area is None else float(area),
        mask,
    )


def _mask(told: Any, height: int, width: int) -> Rle:
    """Polygons, runs as numbers or runs as text -> a compressed mask. Raises ValueError: what does
    not fit would be drawn from memory that is not the mask's."""
    if not (0 < height < _LARGEST and 0 < width < _LARGEST):
        raise ValueError(f"its image is of {width}x{height} px")
    if isinstance(told, list):
        # four numbers would be taken for a box there, and odd ones read beyond the end
        if not told or any(len(points) < 6 or len(points) % 2 for points in told):
            raise ValueError("its segmentation holds no polygon, or one of fewer than 3 points")
        across = [float(x) for points in told for x in points[::2]]
        down = [float(y) for points in told for y in points[1::2]]
        if not all(-width < x < 2 * width for x in across) or not all(
            -height < y < 2 * height for y in down
        ):
            raise ValueError("its segmentation has points that are far from the image")
        return dict(coco_masks.merge(coco_masks.frPyObjects(told, height, width)))
    if list(told["size"]) != [height, width]:
        raise ValueError(f"its mask is of size {told['size']}, the image of {[height, width]}")
    runs = told["counts"] if isinstance(told["counts"], list) else _runs(told["counts"])
    if any(not isinstance(run, int) or run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError("the runs of its mask do not add up to the image")
    return dict(coco_masks.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def _runs(text: str) -> list[int]:
    """COCO's compressed text: 5 bits a letter, the lowest first; from the third on, differences to
    the run before the last."""
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii"):
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("its mask is no compressed text")
        if not bits & 32:
            value -= (bits & 16 and 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the text of its mask is cut off")
    return runs


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is not there" if isinstance(error, KeyError) else str(error)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{file} cannot be read: {reason}") from None
