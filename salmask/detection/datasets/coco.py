"""Annotations in COCO's JSON format (Lin et al. 2014)."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.random_split import is_held_out
from salmask.detection import rle
from salmask.detection.annotations import AnnotatedObject, AnnotationCollector, Bad, read_text
from salmask.detection.datasets import Splits, path_inside
from salmask.detection.objects import Annotations
from salmask.errors import UserError
from salmask.params.values import Share

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
        masks: whether to read masks; None reads them if all objects have one.
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
    return root, replace(first, images=halves[0]), replace(first, images=halves[1], skipped=())


def read_file(
    file: Path, images: Path, masks: bool | None = False, bad: Bad = "skip"
) -> Annotations:
    """The annotations in one file. Crowds are `ignored`; classes are in the order of their ids.

    Args:
        file: the JSON file.
        images: folder of its images.
        masks: whether to read masks, and to leave out objects without one; None reads them if all
            objects have one.
        bad: `skip` or `stop`.

    Raises:
        UserError: the file is missing or has another format, or no image is usable.
    """
    try:
        content = json.loads(read_text(file))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names = {category["id"]: str(category["name"]) for category in categories}
        image_entries = {entry["id"]: entry for entry in content["images"]}
        object_entries = [(int(e["id"]), e["image_id"], dict(e)) for e in content["annotations"]]
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    except (*_MALFORMED, RecursionError) as error:
        raise UserError(
            f"{file} is not in COCO's format: {error!r} is missing or malformed"
        ) from None
    if masks is None:
        masks = bool(object_entries) and all(e.get("segmentation") for _, _, e in object_entries)
    if len(set(names.values())) < len(names):
        raise UserError(f"{file}: several categories have the same name")
    collector = AnnotationCollector(tuple(names.values()), bad)
    by_image: dict[Any, list[AnnotatedObject]] = defaultdict(list)
    for number, image_id, entry in object_entries:
        try:
            image = image_entries[image_id]
            by_image[image_id].append(_object(entry, names, image, masks))
        except _MALFORMED as error:
            collector.problems.append(f"{file}: annotation {number}: {_reason(error)}")
    for image_id, entry in image_entries.items():
        try:
            path, size = images / entry["file_name"], (int(entry["height"]), int(entry["width"]))
        except _MALFORMED as error:
            collector.problems.append(f"{file}: image {image_id}: {_reason(error)}")
            continue
        collector.add_image(path, size, by_image[image_id], masks)
    return collector.annotations("coco", file)


def _object(
    entry: Mapping[str, Any], names: Mapping[Any, str], image: Mapping[str, Any], masks: bool
) -> AnnotatedObject:
    left, top, width, height = (float(value) for value in entry["bbox"])
    mask = None
    if masks:
        size = int(image["height"]), int(image["width"])
        mask = rle.from_segmentation(entry["segmentation"], *size)
    area = entry.get("area")
    if area is None and mask is not None:
        area = rle.area(mask)
    return AnnotatedObject(
        names[entry["category_id"]],
        (left, top, left + width, top + height),
        bool(entry.get("iscrowd", 0)),
        None if area is None else float(area),
        mask,
    )


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


DATASET = read
