"""The manifest: one row per image, with a digest over all of them. Its `id` is the key of
everything: saliency maps, views and features refer to images by row."""

import csv
import hashlib
import io
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salmask.data.decode import opened, pixels
from salmask.data.file_bytes import ImageError, content, gone, regular
from salmask.errors import DataGoneError, UserError

log = logging.getLogger(__name__)


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
        """Whether evaluations with labels make sense: training images show at least two classes."""
        labels = self.labels[self.ids("train")]
        return len(labels[labels >= 0].unique()) > 1


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
    lines = io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")
    rows = list(csv.DictReader(lines))
    root = Path(dataset["root"])
    root = root if root.is_absolute() else folder / root
    if told := gone(root):  # else every image would be a stand-in, and training would go on
        raise UserError(f"{told}, or run `dvc repro`")
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
    """The image of a row, decoded as `decode` does, whatever it shows by now.

    One that vanished or broke since `prepare` becomes a gray image of its size: hours of work
    must not end for one file. This, and a size that is no longer the manifest's, is told once.
    Raises DataGoneError when the whole folder is gone.
    """
    try:
        with regular(manifest.file(row)) as stream:
            image, (width, height) = pixels(opened(stream), at_least)
    except ImageError as error:
        image = _stand_in(manifest, row)
        _tell(manifest.root, row, manifest.paths[row], f"{error}; a gray image stands in")
        return image
    if [height, width] != manifest.sizes[row].tolist():
        said = f"it is {width}x{height} px by now and used so; `dvc repro` would take it in"
        _tell(manifest.root, row, manifest.paths[row], said)
    return image


def verified_image(
    manifest: Manifest, row: int, at_least: int | None = None
) -> tuple[Image.Image, str | None]:
    """The image of a row, decoded as `decode` does from the very bytes that `prepare` saw, and
    None; or, when these cannot be had, a gray image of its size and the reason.

    Raises DataGoneError when the whole folder is gone.
    """
    try:
        with content(manifest.file(row)) as (sha256, stream):
            if sha256 != manifest.sha256[row]:
                raise ImageError("it has changed since prepare")
            return pixels(opened(stream), at_least)[0], None
    except ImageError as error:
        return _stand_in(manifest, row), str(error)


def _stand_in(manifest: Manifest, row: int) -> Image.Image:
    if told := gone(manifest.root):
        raise DataGoneError(told)
    height, width = manifest.sizes[row].tolist()
    return Image.new("RGB", (width, height), (124, 116, 104))


@cache  # for its side: every process says a thing once
def _tell(root: Path, row: int, path: str, what: str) -> None:
    log.warning("row %d, %s: %s", row, path, what)
