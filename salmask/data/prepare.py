"""From a listing of files to a manifest: every file is read and either listed or rejected."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from salmask.data import columns, location
from salmask.data.file_bytes import missing_folder
from salmask.data.inspection import Inspection, inspect
from salmask.data.inspection_cache import InspectionCache
from salmask.data.notes import first_with_same_content, notes_on
from salmask.datasets import ListedFile, Listing
from salmask.errors import DataGoneError, UserError
from salmask.files import file_digest, write_json, write_rows
from salmask.progress import progress
from salmask.threads import thread_pool

COLUMNS = ("id", "path", "label", "split", "width", "height", "sha256")
_CHUNK = 1024  # files per chunk; limits the memory, and the work that is lost if it is killed


def write_manifest(
    listing: Listing,
    name: str,
    folder: Path,
    max_rejected: float,
    min_side: int = 1,
    cache: Path | None = None,
) -> int:
    """Reads the files of a listing; writes manifest.csv, manifest.safetensors, rejected.csv,
    duplicates.csv, location.json and dataset.json.

    Args:
        listing: the files.
        name: of the data set.
        folder: to write into.
        max_rejected: largest accepted share of unusable files.
        min_side: in px; images with a smaller side are rejected.
        cache: database of earlier inspections. Unchanged files are not read again; the result is
            the same as without a cache.

    Returns the number of rejected files. Raises UserError when no file is usable or too many were
    rejected; rejected.csv is written all the same. Raises DataGoneError when the images' folder
    disappears.
    """
    kept: list[ListedFile] = []
    rejections: list[dict[str, str]] = []
    digests = bytearray()

    def usable() -> Iterator[dict[str, Any]]:
        for file, (_, width, height, sha256, reason) in _inspections(listing, cache):
            if not reason and min(width, height) < min_side:
                reason = f"{width}x{height} px: a side is below data.min_side ({min_side})"
            if reason:
                rejections.append({"path": file.path, "reason": reason})
                continue
            values = (len(kept), file.path, file.label, file.split, width, height, sha256)
            kept.append(file)
            digests.extend(bytes.fromhex(sha256))
            yield dict(zip(COLUMNS, values, strict=True))

    write_rows(folder / "manifest.csv", usable(), COLUMNS)
    write_rows(folder / "rejected.csv", rejections, ("path", "reason"))
    rejected = len(rejections)
    message = f"{rejected} of {len(listing.files)} files cannot be used; see rejected.csv"
    if not kept:
        raise UserError(f"no usable image under {listing.root}: {message}")
    if rejected > max_rejected * len(listing.files):
        raise UserError(f"{message}. That is more than data.max_rejected ({max_rejected:g}) allows")
    same_as = first_with_same_content(bytes(digests))
    repeated = np.flatnonzero(same_as != np.arange(len(kept)))
    pairs = ({"path": kept[row].path, "same_as": kept[same_as[row]].path} for row in repeated)
    write_rows(folder / "duplicates.csv", pairs, ("path", "same_as"))
    splits = np.array([file.split for file in kept], dtype=object)
    labels = np.array([file.label for file in kept])
    digest = file_digest(folder / "manifest.csv")
    dataset = {
        "name": name,
        "classes": list(listing.classes),
        "images": dict(Counter(splits.tolist())),
        "rejected": rejected,
        "notes": [
            *notes_on(listing.classes, labels, splits, same_as, listing.empty_folders),
            *listing.notes,
        ],
        "digest": digest,
    }
    columns.write_binary(folder, digest)
    location.save(listing.root, folder, Path.cwd())
    write_json(folder / "dataset.json", dataset)
    return rejected


def _inspections(
    listing: Listing, cache_file: Path | None
) -> Iterator[tuple[ListedFile, Inspection]]:
    """Inspects every file, in the order of the listing, several at a time."""
    files = iter(listing.files)
    with (
        thread_pool() as pool,
        progress("prepare", len(listing.files)) as bar,
        closing(InspectionCache(cache_file)) as cache,
    ):
        while chunk := list(islice(files, _CHUNK)):
            cached = cache.lookup([file.path for file in chunk])
            jobs = [(listing.root / file.path, cached.get(file.path)) for file in chunk]
            new = {}
            results = pool.map(lambda job: inspect(*job), jobs)
            for file, (_, old), inspection in zip(chunk, jobs, results, strict=True):
                if not inspection.state and (message := missing_folder(listing.root)):
                    raise DataGoneError(message)
                if inspection is not old:
                    new[file.path] = inspection
                bar.advance(1)
                yield file, inspection
            cache.store(new)
        cache.delete_all_but(file.path for file in listing.files)
