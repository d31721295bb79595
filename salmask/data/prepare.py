"""From a listing of files to a manifest: every file is read and either listed or rejected."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from salmask.data.file_bytes import missing_folder
from salmask.data.inspection import Inspection, inspect
from salmask.data.inspection_cache import InspectionCache
from salmask.data.notes import first_with_same_content, notes_on
from salmask.datasets.listing import ListedFile, Listing
from salmask.errors import DataGoneError, UserError
from salmask.files import file_digest, write_json
from salmask.progress import progress

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
    """Reads the files of a listing; writes manifest.csv, rejected.csv, duplicates.csv and
    dataset.json.

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
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[ListedFile] = []
    digests = bytearray()
    with (
        _csv_writer(folder / "manifest.csv", COLUMNS) as add_row,
        _csv_writer(folder / "rejected.csv", ("path", "reason")) as reject,
    ):
        for file, inspection in _inspections(listing, cache):
            _, width, height, sha256, reason = inspection
            if not reason and min(width, height) < min_side:
                reason = f"{width}x{height} px: a side is below data.min_side ({min_side})"
            if reason:
                reject(file.path, reason)
                continue
            add_row(len(kept), file.path, file.label, file.split, width, height, sha256)
            kept.append(file)
            digests += bytes.fromhex(sha256)
    rejected = len(listing.files) - len(kept)
    message = f"{rejected} of {len(listing.files)} files cannot be used; see rejected.csv"
    if not kept:
        raise UserError(f"no usable image under {listing.root}: {message}")
    if rejected > max_rejected * len(listing.files):
        raise UserError(f"{message}. That is more than data.max_rejected ({max_rejected:g}) allows")
    same_as = first_with_same_content(bytes(digests))
    with _csv_writer(folder / "duplicates.csv", ("path", "same_as")) as add_pair:
        for row in np.flatnonzero(same_as != np.arange(len(kept))):
            add_pair(kept[row].path, kept[same_as[row]].path)
    splits = np.array([file.split for file in kept], dtype=object)
    labels = np.array([file.label for file in kept])
    dataset = {
        "name": name,
        "root": _relative_root(listing.root, folder),
        "classes": list(listing.classes),
        "images": dict(Counter(splits.tolist())),
        "rejected": rejected,
        "notes": notes_on(listing.classes, labels, splits, same_as, listing.empty_folders),
        "digest": file_digest(folder / "manifest.csv"),
    }
    write_json(folder / "dataset.json", dataset)
    return rejected


def _inspections(
    listing: Listing, cache_file: Path | None
) -> Iterator[tuple[ListedFile, Inspection]]:
    """Inspects every file, in the order of the listing, several at a time."""
    files = iter(listing.files)
    with (
        ThreadPoolExecutor() as pool,
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
        cache.delete_unlisted()


@contextmanager
def _csv_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[..., None]]:
    """A CSV file with a header, which replaces `path` when it is complete; yields a function that
    writes a row. Names that are not UTF-8 keep their bytes."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        plain = csv.writer(stream, lineterminator="\n")
        quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)

        def write_row(*values: Any) -> None:
            # Python before 3.13 does not quote a single \r, but reads it as the end of the row.
            (quoted if any("\r" in str(value) for value in values) else plain).writerow(values)

        write_row(*columns)
        yield write_row
    partial.replace(path)


def _relative_root(root: Path, folder: Path) -> str:
    """The root, relative to `folder` if it is inside: then the folder can be moved."""
    inside = root.is_relative_to(folder)
    return root.relative_to(folder).as_posix() if inside else str(root)
