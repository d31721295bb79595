"""A set of annotated images on disk, read and checked once: dataset.json, and pictures.jsonl with a
line for each image. Its sha256 stands there, so that nothing changes unnoticed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from salmask.data.file_bytes import ImageError, missing_folder, open_with_digest
from salmask.detection.objects import Annotations, Picture
from salmask.detection.protocol import Sets
from salmask.errors import UserError
from salmask.files import write_bytes, write_json, write_rows
from salmask.provenance import file_digest

FILES = ("dataset.json", "pictures.jsonl")
_ABOUT, _PICTURES = FILES


def save(sets: Sets, root: Path, folder: Path) -> dict[str, Any]:
    """Writes a set whose images lie below `root`, and skipped.csv with what was left out; returns
    what dataset.json says. Raises UserError for an image that cannot be read any more."""
    halves = {"train": sets.train, "test": sets.test}
    seen: dict[str, set[str]] = {}
    lines = []
    for split, half in halves.items():
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_digest, (picture.file for picture in half.pictures)))
        seen[split] = set(digests)
        for picture, sha256 in zip(half.pictures, digests, strict=True):
            path = picture.file.relative_to(root).as_posix()
            told = {"split": split, "path": path, "sha256": sha256} | _told(picture)
            lines.append(json.dumps(told) + "\n")
    write_bytes(folder / _PICTURES, "".join(lines).encode())
    skipped = [{"split": s, "what": line} for s, half in halves.items() for line in half.skipped]
    write_rows(folder / "skipped.csv", skipped, ["split", "what"])
    both = len(seen["train"] & seen["test"])
    whole = root.resolve()
    inside = whole.is_relative_to(folder.resolve())
    about = {
        "name": sets.name,
        "root": whole.relative_to(folder.resolve()).as_posix() if inside else str(whole),
        "rule": sets.train.rule,
        "classes": list(sets.train.classes),
        "images": {split: len(half.pictures) for split, half in halves.items()},
        "objects": {split: sum(map(len, half.pictures)) for split, half in halves.items()},
        "masks": all(half.has_masks() for half in halves.values()),
        "skipped": len(skipped),
        "notes": [f"{both} test images are also trained on"] if both else [],
        "digest": file_digest(folder / _PICTURES),
    }
    write_json(folder / _ABOUT, about)
    return about


def load(folder: Path) -> Sets:
    """The set in `folder`. Raises UserError when it is missing or was changed by hand, or when the
    folder of images is gone."""
    try:
        about = json.loads((folder / _ABOUT).read_text())
        digest = file_digest(folder / _PICTURES)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro detect_data`") from None
    if digest != about["digest"]:
        raise UserError(
            f"{folder}/{_PICTURES} is not the one that was written: run "
            "`dvc repro --force detect_data`"
        )
    root = folder / about["root"]  # an absolute one stands alone
    if told := missing_folder(root):
        raise UserError(f"{told}, or run `dvc repro`")
    halves: dict[str, list[Picture]] = {"train": [], "test": []}
    for line in _lines(folder / _PICTURES):
        halves[line["split"]].append(_picture(line, root, about["masks"]))
    classes = tuple(about["classes"])
    train, test = (Annotations(classes, tuple(half), about["rule"]) for half in halves.values())
    return Sets(about["name"], train, test)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def _digest(file: Path) -> str:
    try:
        with open_with_digest(file) as (sha256, _):
            return sha256
    except ImageError as error:
        raise UserError(f"{file}: {error}") from None


def _told(picture: Picture) -> dict[str, Any]:
    masks = picture.masks
    return {
        "height": picture.height,
        "width": picture.width,
        "boxes": picture.boxes.tolist(),
        "labels": picture.labels.tolist(),
        "ignored": picture.ignored.tolist(),
        "areas": picture.areas.tolist(),
        "masks": None if masks is None else [mask["counts"].decode() for mask in masks],
    }


def _picture(told: dict[str, Any], root: Path, masks: bool) -> Picture:
    size = [told["height"], told["width"]]
    runs = tuple({"size": size, "counts": counts.encode()} for counts in told["masks"] or ())
    return Picture(
        root / told["path"],
        told["height"],
        told["width"],
        np.array(told["boxes"], dtype=np.float64).reshape(-1, 4),
        np.array(told["labels"], dtype=np.int64),
        np.array(told["ignored"], dtype=bool),
        np.array(told["areas"], dtype=np.float64),
        runs if masks else None,
    )
