"""A set of annotated images on disk, read and checked once: dataset.json, and pictures.jsonl with
one line per image. The line has the sha256 of the image file, so that changed images are noticed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from salmask.data import location
from salmask.data.file_bytes import ImageError, open_with_digest
from salmask.detection.objects import AnnotatedImage, Annotations, DetectionData
from salmask.errors import UserError
from salmask.files import file_digest, write_bytes, write_json, write_rows
from salmask.stored_files import command_for, damage_reported, read_json
from salmask.threads import thread_pool

FILES = ("dataset.json", "pictures.jsonl")
_DATASET, _IMAGES = FILES
_ARRAYS = {"boxes": np.float64, "labels": np.int64, "ignored": np.bool_, "areas": np.float64}


def save(data: DetectionData, root: Path, folder: Path) -> dict[str, Any]:
    """Writes FILES, and skipped.csv with what was left out.

    Args:
        data: annotated images.
        root: the folder below which all images lie.
        folder: receives the files.

    Returns:
        The content of dataset.json.

    Raises:
        UserError: an image cannot be read any more, or a split has no object.
    """
    splits = {"train": data.train, "test": data.test}
    _require_objects(data)
    digests: dict[str, set[str]] = {}
    lines = []
    for name, split in splits.items():
        with thread_pool() as pool:
            of_split = list(pool.map(_image_digest, (image.file for image in split.images)))
        digests[name] = set(of_split)
        for image, sha256 in zip(split.images, of_split, strict=True):
            path = image.file.relative_to(root).as_posix()
            line = {"split": name, "path": path, "sha256": sha256} | _to_json(image)
            lines.append(json.dumps(line) + "\n")
    write_bytes(folder / _IMAGES, "".join(lines).encode())
    skipped = [{"split": name, "what": line} for name, s in splits.items() for line in s.skipped]
    write_rows(folder / "skipped.csv", skipped, ["split", "what"])
    in_both = len(digests["train"] & digests["test"])
    notes = list(dict.fromkeys([*data.train.notes, *data.test.notes]))
    notes += [f"{in_both} test images are also trained on"] if in_both else []
    location.save(root.resolve(), folder.resolve(), Path.cwd())
    metadata = {
        "name": data.name,
        "rule": data.train.rule,
        "classes": list(data.train.classes),
        "images": {name: len(split.images) for name, split in splits.items()},
        "objects": {name: sum(map(len, split.images)) for name, split in splits.items()},
        "masks": all(split.has_masks() for split in splits.values()),
        "skipped": len(skipped),
        "notes": notes,
        "digest": file_digest(folder / _IMAGES),
    }
    write_json(folder / _DATASET, metadata)
    return metadata


def load(folder: Path) -> DetectionData:
    """The annotated images that `save` wrote to a folder.

    Raises:
        UserError: the files are missing or were edited, or the folder of images is missing.
    """
    try:
        metadata = read_json(folder / _DATASET)
        digest = file_digest(folder / _IMAGES)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro detect_data`") from None
    with damage_reported(folder / _DATASET):
        name, rule, masks = metadata["name"], metadata["rule"], metadata["masks"]
        classes, expected = tuple(metadata["classes"]), metadata["digest"]
    if digest != expected:
        raise UserError(
            f"{folder}/{_IMAGES} has changed since it was written: run "
            f"`{command_for(folder / _IMAGES) or 'dvc repro'}`"
        )
    root = location.load(folder)
    splits: dict[str, list[AnnotatedImage]] = {"train": [], "test": []}
    with (folder / _IMAGES).open(encoding="utf-8") as stream:
        for line in map(json.loads, stream):
            splits[line["split"]].append(_from_json(line, root, masks))
    train, test = (Annotations(classes, tuple(s), rule) for s in splits.values())
    return DetectionData(name, train, test)


def _require_objects(data: DetectionData) -> None:
    """Raises UserError if there is no object to learn from, or none that is scored."""
    for name, split in (("train", data.train), ("test", data.test)):
        objects = sum(map(len, split.images))
        scored = sum(int((~image.ignored).sum()) for image in split.images)
        if not scored and not (name == "train" and objects and split.rule == "voc"):
            raise UserError(
                f"the {name} split of {data.name} has {len(split.images)} images, {objects} "
                f"objects, of which {objects - scored} are crowds or difficult: none is left to "
                f"{'learn from' if name == 'train' else 'score'}. Check the file that lists them, "
                "and its classes"
            )


def _image_digest(file: Path) -> str:
    try:
        with open_with_digest(file) as (sha256, _):
            return sha256
    except ImageError as error:
        raise UserError(f"{file}: {error}") from None


def _to_json(image: AnnotatedImage) -> dict[str, Any]:
    arrays = {name: getattr(image, name).tolist() for name in _ARRAYS}
    masks = image.masks
    runs = None if masks is None else [mask["counts"].decode() for mask in masks]
    return {"height": image.height, "width": image.width, **arrays, "masks": runs}


def _from_json(line: dict[str, Any], root: Path, masks: bool) -> AnnotatedImage:
    size = [line["height"], line["width"]]
    fields: dict[str, Any] = {n: np.array(line[n], dtype=dtype) for n, dtype in _ARRAYS.items()}
    fields["boxes"] = fields["boxes"].reshape(-1, 4)
    if masks:
        fields["masks"] = tuple({"size": size, "counts": c.encode()} for c in line["masks"] or ())
    return AnnotatedImage(root / line["path"], line["height"], line["width"], **fields)
