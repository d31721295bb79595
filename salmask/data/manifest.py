"""The manifest: one row per image, with a digest over all of them. Its `id` is the key of
everything: saliency maps, views and features refer to images by row."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salmask.data.images import decode
from salmask.errors import UserError
from salmask.files import write_json, write_rows
from salmask.progress import progress
from salmask.provenance import file_digest

COLUMNS = ("id", "path", "label", "split", "width", "height", "sha256")
log = logging.getLogger(__name__)
_CHUNK = 4096  # files in flight: bounds memory on folders of any size


@dataclass(frozen=True)
class Found:
    """A file that a source offers. path: relative to the listing's root. label: -1 for none."""

    path: str
    label: int
    split: str


@dataclass(frozen=True)
class Listing:
    """What a source found: the folder, the class names, the files."""

    root: Path
    classes: tuple[str, ...]
    files: list[Found]


@dataclass(frozen=True)
class Manifest:
    """Rows in memory. N rows: paths and splits (N,) str, labels (N,) int64, sizes (N,2) int64
    as height, width. digest: sha256 over the rows."""

    name: str
    root: Path
    classes: tuple[str, ...]
    digest: str
    paths: np.ndarray
    splits: np.ndarray
    labels: Tensor
    sizes: Tensor
    sha256: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, row: int) -> Path:
        return self.root / str(self.paths[row])

    def ids(self, split: str) -> Tensor:
        """The rows (n,) int64 of one split, in order."""
        return torch.from_numpy(np.flatnonzero(self.splits == split))

    def split_names(self) -> list[str]:
        """The splits there are, in order of appearance."""
        return list(dict.fromkeys(self.splits.tolist()))

    def labelled(self) -> bool:
        """Whether evaluations with labels make sense: at least two classes are in use."""
        return len(set(self.labels[self.labels >= 0].tolist())) > 1


def _inspect(root: Path, found: Found) -> tuple[Found, tuple[int, int] | None, str]:
    """(file, (width, height), sha256), or (file, None, why it cannot be used)."""
    try:
        image = decode(root / found.path)
        return found, image.size, file_digest(root / found.path)
    except Exception as error:  # whatever a broken file provokes is that file's reason
        return found, None, f"{type(error).__name__}: {error}".replace(str(root), "")


def _inspected(listing: Listing) -> Iterator[tuple[Found, tuple[int, int] | None, str]]:
    files = iter(listing.files)
    with ThreadPoolExecutor() as pool, progress("prepare", len(listing.files)) as bar:
        while chunk := list(islice(files, _CHUNK)):
            for result in pool.map(lambda found: _inspect(listing.root, found), chunk):
                bar.advance(1)
                yield result


def write(listing: Listing, name: str, folder: Path, max_rejected: float) -> int:
    """Reads every file of a listing and writes manifest.csv, rejected.csv and dataset.json.

    max_rejected: the share of unreadable files that is still accepted. Returns the number of
    rejected files. Raises UserError when nothing readable is left or too much was rejected; the
    list of what was rejected is written all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    rejected: list[dict[str, str]] = []
    row = 0
    with (folder / "manifest.csv").open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(COLUMNS)
        for found, size, detail in _inspected(listing):
            if size is None:
                rejected.append({"path": found.path, "reason": detail})
                continue
            rows.writerow((row, found.path, found.label, found.split, *size, detail))
            counts[found.split] = counts.get(found.split, 0) + 1
            row += 1
    write_rows(folder / "rejected.csv", rejected, ("path", "reason"))
    said = f"{len(rejected)} of {len(listing.files)} files cannot be read; see rejected.csv"
    if row == 0:
        raise UserError(f"no usable image under {listing.root}: {said}")
    if len(rejected) > max_rejected * len(listing.files):
        raise UserError(f"{said}. That is more than data.max_rejected ({max_rejected:g}) allows")
    dataset = {
        "name": name,
        "root": _relative(listing.root, folder),
        "classes": list(listing.classes),
        "images": counts,
        "rejected": len(rejected),
        "digest": file_digest(folder / "manifest.csv"),
    }
    write_json(folder / "dataset.json", dataset)
    return len(rejected)


def _relative(root: Path, folder: Path) -> str:
    """The root as seen from the manifest when it lies inside (a copied demo stays whole)."""
    inside = root.is_relative_to(folder)
    return root.relative_to(folder).as_posix() if inside else str(root)


def load(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises UserError when it is missing or was changed by
    hand, or when the folder of images is gone."""
    try:
        dataset = json.loads((folder / "dataset.json").read_text())
        text = (folder / "manifest.csv").read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro prepare`") from None
    digest = hashlib.sha256(text).hexdigest()
    if digest != dataset["digest"]:
        raise UserError(
            f"{folder}/manifest.csv is not the one that prepare wrote: run "
            f"`dvc repro --force prepare`"
        )
    rows = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    root = Path(dataset["root"])
    root = root if root.is_absolute() else folder / root
    if not root.is_dir():  # else every image would be a stand-in, and training would go on
        raise UserError(f"the images' folder {root} is not there: mount it, or run `dvc repro`")
    return Manifest(
        name=dataset["name"],
        root=root,
        classes=tuple(dataset["classes"]),
        digest=digest,
        paths=np.array([r["path"] for r in rows], dtype=object),
        splits=np.array([r["split"] for r in rows], dtype=object),
        labels=torch.tensor([int(r["label"]) for r in rows]),
        sizes=torch.tensor([(int(r["height"]), int(r["width"])) for r in rows]),
        sha256=np.array([r["sha256"] for r in rows], dtype=object),
    )


def read_image(manifest: Manifest, row: int, at_least: int | None = None) -> Image.Image:
    """The image of a row, decoded as `decode` does. One that vanished or broke since `prepare`
    becomes a gray image of its size, with a warning: hours of work must not end for one file."""
    try:
        return decode(manifest.file(row), at_least)
    except Exception as error:
        log.warning("row %d, %s: %s; a gray image stands in", row, manifest.paths[row], error)
        height, width = manifest.sizes[row].tolist()
        return Image.new("RGB", (width, height), (124, 116, 104))
