"""Annotations in COCO's JSON format (Lin et al. 2014)."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.folders import is_file, leads_out, read_bytes, require_inside
from salmask.datasets.listing import shorten
from salmask.datasets.random_split import is_held_out
from salmask.detection import rle
from salmask.detection.annotations import AnnotatedObject, AnnotationCollector, Bad
from salmask.detection.datasets import Splits, path_inside
from salmask.detection.objects import Annotations
from salmask.errors import UserError
from salmask.params.mistakes import shown
from salmask.params.ranges import Share

Id = int | str
_MASKED_SHARE = 0.9  # of objects with a mask, from which on masks are read by default
# What malformed values in a file raise.
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def read(
    folder: Path,
    seed: int,
    *,
    root: Path,
    train: str = "annotations/instances_train2017.json",
    train_images: str = "train2017",
    test: str | None = "annotations/instances_val2017.json",
    test_images: str = "val2017",
    test_share: Share = 0.2,
    masks: bool | None = None,
    bad: Bad = "skip",
) -> Splits:
    """Training and test images from files in COCO's format.

    Args:
        folder: not used.
        seed: chooses the test images when `test` is None.
        root: the folder that holds all files, or its fingerprint file.
        train: file with the training annotations, inside root.
        train_images: folder of the training images, inside root.
        test: file with the test annotations; None holds out a share of the training images.
        test_images: folder of the test images, inside root.
        test_share: share of the images that is held out when `test` is None.
        masks: whether to read masks, and to leave out objects without one; None reads them if at
            least 90% of the objects have one.
        bad: `skip` lists unusable images and objects, `stop` raises an error for them.
    """
    root = folder_of(root, "root")

    def annotations(file: str, images: str) -> Annotations:
        return read_file(path_inside(root, file), path_inside(root, images), masks, bad)

    first = annotations(train, train_images)
    if test is not None:
        return root, first, annotations(test, test_images)
    base = path_inside(root, train_images)
    for_test = [is_held_out(str(i.file.relative_to(base)), seed, test_share) for i in first.images]
    halves = [
        tuple(image for image, is_test in zip(first.images, for_test, strict=True)
              if is_test == side)
        for side in (False, True)
    ]  # fmt: skip
    if not all(halves):
        raise UserError(
            f"test_share {test_share:g} of {len(for_test)} images leaves no image to train on or "
            "to test on"
        )
    return (
        root,
        replace(first, images=halves[0]),
        replace(first, images=halves[1], skipped=(), notes=()),
    )


def read_file(
    file: Path, images: Path, masks: bool | None = False, bad: Bad = "skip"
) -> Annotations:
    """The annotations in one file. Crowds are `ignored`; classes are in the order of their ids.

    Ids may be numbers or texts. File names may have the separators or the folders of another
    machine.

    Args:
        file: the JSON file.
        images: folder of its images.
        masks: whether to read masks, and to leave out objects without one; None reads them if at
            least 90% of the objects have one.
        bad: `skip` or `stop`.

    Raises:
        UserError: the file is missing or has another format, several images or categories have the
            same id, a file name leads out of the folder, or no image is usable.
    """
    try:
        content = json.loads(read_bytes(file))
        entries = [(_id(e["id"]), str(e["name"])) for e in content["categories"]]
        names = dict(sorted(entries, key=lambda entry: (isinstance(entry[0], str), entry[0])))
        images_by_id = {_id(e["id"]): dict(e) for e in content["images"]}
        objects = [(_id(e["image_id"]), dict(e)) for e in content["annotations"]]
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not valid JSON: it is not UTF-8 or UTF-16 text") from None
    except KeyError as error:
        raise UserError(
            f"{file} is not in COCO's format: {error} is missing{_advice(error)}"
        ) from None
    except (*_MALFORMED, RecursionError) as error:
        raise UserError(f"{file} is not in COCO's format: {error} is malformed") from None
    _refuse_repeated("categories", [(key, name) for key, name in dict.fromkeys(entries)], file)
    if len(set(names.values())) < len(names):
        raise UserError(f"{file}: several categories have the same name")
    _refuse_repeated(
        "images", [(_id(e["id"]), str(e.get("file_name"))) for e in content["images"]], file
    )
    collector = AnnotationCollector(tuple(names.values()), bad)
    masks = _reads_masks(objects, masks, collector, file)
    paths = _paths(images_by_id, images, collector, file)
    by_image: dict[Id, list[AnnotatedObject]] = defaultdict(list)
    for number, (image_id, entry) in enumerate(objects):
        try:
            if image_id not in images_by_id:
                raise ValueError(f"there is no image of its image_id {image_id}")
            by_image[image_id].append(_object(entry, names, images_by_id[image_id], masks))
        except _MALFORMED as error:
            collector.listed_objects += 1
            collector.problems.append(
                f"{file}: annotation {entry.get('id', f'number {number}')}: {_reason(error)}"
            )
    for image_id, path in paths.items():
        entry = images_by_id[image_id]
        try:
            size = _size(entry)
        except _MALFORMED as error:
            collector.listed_images += 1
            collector.problems.append(f"{file}: image {image_id}: {_reason(error)}")
            continue
        collector.add_image(path, size, by_image[image_id], masks)
    used = {item.name for items in by_image.values() for item in items}
    if unused := [name for name in names.values() if name not in used]:
        collector.notes.append(f"{file.name}: classes without an object: {shorten(unused)}")
    return collector.annotations("coco", file)


def _id(value: Any) -> Id:
    """An id as a number where it is one: some programs write ids as texts or with a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"the id {value!r}")
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() else text
    if value != int(value):
        raise ValueError(f"the id {value!r}")
    return int(value)


def _advice(error: KeyError) -> str:
    if error.args[0] != "annotations":
        return ""
    return "; a file without them, such as COCO's image_info, cannot be learned from or scored"


def _refuse_repeated(what: str, entries: Sequence[tuple[Id, str]], file: Path) -> None:
    """Raises UserError if entries have the same id, or are images of one file."""
    for column, kind in ((0, "id"), (1, "file")):
        if what == "categories" and column:
            return
        first: dict[Any, tuple[Id, str]] = {}
        repeated = [e for e in entries if first.setdefault(e[column], e) is not e]
        if repeated:
            one, other = first[repeated[0][column]], repeated[0]
            raise UserError(
                f"{file}: {len(repeated)} of {len(entries)} {what} have the {kind} of an earlier "
                f"one (such as {shown(one)} and {shown(other)}), as when files are joined without "
                "new ids; number them anew, join the entries of one file, and change the "
                f"annotations accordingly"
            )


def _reads_masks(
    objects: Sequence[tuple[Id, Mapping[str, Any]]],
    masks: bool | None,
    collector: AnnotationCollector,
    file: Path,
) -> bool:
    """Whether masks are read, see `read_file`."""
    if masks is not None:
        return masks
    count = sum(bool(entry.get("segmentation")) for _, entry in objects)
    if count and count < _MASKED_SHARE * len(objects):
        collector.notes.append(
            f"{file.name}: masks are not read, because only {count} of {len(objects)} objects have "
            "one; `masks: true` leaves the others out instead"
        )
    return count > 0 and count >= _MASKED_SHARE * len(objects)


def _paths(
    entries: Mapping[Id, Mapping[str, Any]],
    folder: Path,
    collector: AnnotationCollector,
    file: Path,
) -> dict[Id, Path]:
    """The image file of each entry that names one. A name may have the separators and the folders
    of another machine: the longest end of it that is a file in `folder` counts.

    Raises UserError for a name that leads out of the folder, and for two names of one file.
    """
    paths: dict[Id, Path] = {}
    names: dict[Path, str] = {}
    moved = []
    for image_id, entry in entries.items():
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name:
            collector.listed_images += 1
            collector.problems.append(f"{file}: image {image_id}: it has no valid file_name")
            continue
        path = folder / name
        if leads_out(name) or not is_file(path):
            parts = name.replace("\\", "/").split("/")
            if ".." in parts:
                require_inside(folder, name, f"{file}: image {image_id}")
            ends = (folder / "/".join(parts[start:]) for start in range(len(parts)))
            ends = (end for start, end in enumerate(ends) if parts[start])
            path = next((end for end in ends if is_file(end)), folder / parts[-1])
            if is_file(path):
                moved.append(name)
        if path in names:
            raise UserError(f"{file}: {names[path]} and {name} are both {path} here")
        names[path], paths[image_id] = name, path
    if moved:
        collector.notes.append(
            f"{file.name}: {len(moved)} of {len(entries)} file names are those of another system "
            f"(such as {moved[0]}); the files of the same names in {folder} are read"
        )
    return paths


def _object(
    entry: Mapping[str, Any], names: Mapping[Id, str], image: Mapping[str, Any], masks: bool
) -> AnnotatedObject:
    left, top, width, height = _box(entry["bbox"])
    category = _id(entry["category_id"])
    if category not in names:
        raise ValueError(f"there is no category of its category_id {category}")
    mask = None
    if masks:
        size = _size(image)
        mask = rle.from_segmentation(entry["segmentation"], *size)
    area = entry.get("area")
    if area is None and mask is not None:
        area = rle.area(mask)
    return AnnotatedObject(
        names[category],
        (left, top, left + width, top + height),
        bool(int(entry.get("iscrowd") or 0)),
        None if area is None else float(area),
        mask,
    )


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width. Raises KeyError, or ValueError for values that are not numbers."""
    height, width = image["height"], image["width"]
    try:
        return int(height), int(width)
    except (TypeError, ValueError):
        raise ValueError(f"its height {height!r} and width {width!r} are not numbers") from None


def _box(value: Any) -> list[float]:
    """The four numbers of a box. Raises ValueError for other values."""
    try:
        box = [float(number) for number in value] if isinstance(value, list) else []
    except (TypeError, ValueError):
        box = []
    if len(box) != 4:
        raise ValueError(f"its bbox {str(value)[:60]} is not a list of four numbers")
    return box


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


DATASET = read
