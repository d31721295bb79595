"""The manifest: one row per image. Saliency maps, views and features refer to images by row."""

import logging
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salmask.data import columns, location
from salmask.data.columns import Digests, Texts
from salmask.data.decode import load_pixels, open_image
from salmask.data.file_bytes import ImageError, missing_folder, open_file, open_with_digest
from salmask.data.pack import Pack, open_pack
from salmask.errors import DataGoneError, UserError
from salmask.files import file_digest
from salmask.stored_files import command_for, damage_reported, read_json

log = logging.getLogger(__name__)
_REPLACEMENT = "replacement"  # key in the `info` of gray images


@dataclass(frozen=True)
class Manifest:
    """The N rows of a manifest.

    Args:
        name: of the data set.
        root: absolute folder of the images.
        classes: class names.
        digest: sha256 of manifest.csv.
        paths: N texts, relative to `root`.
        splits: (N,) str.
        labels: (N,) int64; -1 for none.
        sizes: (N, 2) int64, height and width in px.
        sha256: N texts of hex digits, of each file; `sha256.raw` is (N,32) uint8.
        pack: where the files are read from, if `prepare` packed them.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    digest: str
    paths: Texts
    splits: np.ndarray
    labels: Tensor
    sizes: Tensor
    sha256: Digests
    pack: Pack | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, row: int) -> Path:
        return self.root / self.paths[row]

    def open(self, row: int) -> BinaryIO:
        """The bytes of the image file of a row, from the pack if there is one. Raises ImageError.

        Bytes from a pack have the digest of the manifest.
        """
        if self.pack is None:
            return open_file(self.file(row))
        return BytesIO(self.pack.read(row, self.sha256.raw[row].tobytes()))

    def ids(self, split: str) -> Tensor:
        """The rows of one split, in order: (n,) int64."""
        return torch.from_numpy(np.flatnonzero(self.splits == split))

    def split_names(self) -> list[str]:
        """The names of the splits, in order of appearance."""
        return list(dict.fromkeys(self.splits.tolist()))

    def labelled(self) -> bool:
        """Whether the training images have at least two classes, which evaluations with labels
        need."""
        labels = self.labels[self.ids("train")]
        return len(labels[labels >= 0].unique()) > 1


def load(folder: Path) -> Manifest:
    """Reads the manifest in `folder`.

    Raises UserError when it is missing or edited, or when the images' folder is missing and the
    images are not packed.
    """
    try:
        dataset = read_json(folder / "dataset.json")
        digest = file_digest(folder / "manifest.csv")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro prepare`") from None
    with damage_reported(folder / "dataset.json"):
        name, classes, expected = dataset["name"], tuple(dataset["classes"]), dataset["digest"]
    file = folder / "manifest.csv"
    if digest != expected:
        raise UserError(
            f"{file} was edited or damaged after it was written: run "
            f"`{command_for(file) or 'dvc repro'}`"
        )
    rows = columns.read(folder, digest)
    pack_folder = location.load_pack(folder)
    pack = open_pack(pack_folder, digest) if pack_folder else None
    return Manifest(
        name=name,
        root=location.load(folder, check=pack is None),
        classes=classes,
        digest=digest,
        paths=rows.paths,
        splits=np.array(rows.split_names, dtype=object)[rows.splits],
        labels=torch.from_numpy(rows.labels.astype(np.int64)),
        sizes=torch.from_numpy(rows.sizes.astype(np.int64)),
        sha256=rows.sha256,
        pack=pack,
    )


def read_image(manifest: Manifest, row: int, at_least: int | None = None) -> Image.Image:
    """The image of a row, decoded as `decode` does.

    A file that disappeared or broke since `prepare` is replaced by a gray image of its size, since
    one file must not end hours of work. This and a changed size cause one warning per row. Raises
    DataGoneError when the whole folder is missing.
    """
    try:
        with manifest.open(row) as stream:
            image, (width, height) = load_pixels(open_image(stream), at_least)
    except ImageError as error:
        image = _gray_image(manifest, row)
        _warn_once(manifest.root, row, manifest.paths[row], f"{error}; a gray image is used")
        return image
    if [height, width] != manifest.sizes[row].tolist():
        message = f"its size changed to {width}x{height} px; `dvc repro` updates the manifest"
        _warn_once(manifest.root, row, manifest.paths[row], message)
    return image


def verified_image(
    manifest: Manifest, row: int, at_least: int | None = None
) -> tuple[Image.Image, str | None]:
    """The image of a row and None, if the file has the sha256 of the manifest; otherwise a gray
    image of its size and the reason.

    Raises DataGoneError when the whole folder is missing.
    """
    try:
        if manifest.pack is not None:
            with manifest.open(row) as stream:
                return load_pixels(open_image(stream), at_least)[0], None
        with open_with_digest(manifest.file(row)) as (sha256, stream):
            if sha256 != manifest.sha256[row]:
                raise ImageError("it has changed since prepare")
            return load_pixels(open_image(stream), at_least)[0], None
    except ImageError as error:
        return _gray_image(manifest, row), str(error)


def _gray_image(manifest: Manifest, row: int) -> Image.Image:
    folder = manifest.pack.folder if manifest.pack else manifest.root
    if message := missing_folder(folder):
        raise DataGoneError(message)
    height, width = manifest.sizes[row].tolist()
    image = Image.new("RGB", (width, height), (124, 116, 104))
    image.info[_REPLACEMENT] = True
    return image


def is_replacement(image: Image.Image) -> bool:
    """Whether `read_image` made this image because it could not read the file."""
    return _REPLACEMENT in image.info


@cache  # a process gives each warning once
def _warn_once(root: Path, row: int, path: str, message: str) -> None:
    log.warning("row %d, %s: %s", row, path, message)
