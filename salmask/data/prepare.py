"""From the files that a source offers to a manifest: every one read, judged and listed."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from salmask.data import notices
from salmask.data.file_bytes import gone
from salmask.data.inspection import Seen, inspect
from salmask.data.inspection_cache import Memory
from salmask.datasets.listing import ListedFile, Listing
from salmask.errors import DataGoneError, UserError
from salmask.files import write_json
from salmask.progress import progress
from salmask.provenance import file_digest

COLUMNS = ("id", "path", "label", "split", "width", "height", "sha256")
_CHUNK = 1024  # files in flight: bounds the memory, and what a kill can cost


def write(
    listing: Listing,
    name: str,
    folder: Path,
    max_rejected: float,
    min_side: int = 1,
    memory: Path | None = None,
) -> int:
    """Reads every file of a listing and writes manifest.csv, rejected.csv, duplicates.csv and
    dataset.json.

    max_rejected: the share of unusable files that is still accepted. min_side: px; smaller images
    are not used. memory: a database of what earlier calls found out; files that did not change
    since are not read again, and the files written are the same as without it.

    Returns the number of rejected files. Raises UserError when nothing usable is left or too much
    was rejected; the list of what was rejected is written all the same. Raises DataGoneError when
    the folder of images vanishes on the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[ListedFile] = []
    digests = bytearray()
    with (
        _table(folder / "manifest.csv", COLUMNS) as rows,
        _table(folder / "rejected.csv", ("path", "reason")) as refused,
    ):
        for found, seen in _inspected(listing, memory):
            reason = seen.reason
            if not reason and min(seen.width, seen.height) < min_side:
                size = f"{seen.width}x{seen.height} px"
                reason = f"{size}: a side is below data.min_side ({min_side})"
            if reason:
                refused(found.path, reason)
                continue
            about = (found.label, found.split, seen.width, seen.height, seen.sha256)
            rows(len(kept), found.path, *about)
            kept.append(found)
            digests += bytes.fromhex(seen.sha256)
    rejected = len(listing.files) - len(kept)
    said = f"{rejected} of {len(listing.files)} files cannot be used; see rejected.csv"
    if not kept:
        raise UserError(f"no usable image under {listing.root}: {said}")
    if rejected > max_rejected * len(listing.files):
        raise UserError(f"{said}. That is more than data.max_rejected ({max_rejected:g}) allows")
    same_as = notices.first_with(bytes(digests))
    with _table(folder / "duplicates.csv", ("path", "same_as")) as pairs:
        for row in np.flatnonzero(same_as != np.arange(len(kept))):
            pairs(kept[row].path, kept[same_as[row]].path)
    splits = np.array([found.split for found in kept], dtype=object)
    labels = np.array([found.label for found in kept])
    dataset = {
        "name": name,
        "root": _relative(listing.root, folder),
        "classes": list(listing.classes),
        "images": dict(Counter(splits.tolist())),
        "rejected": rejected,
        "notes": notices.notes(listing.classes, labels, splits, same_as, listing.empty_folders),
        "digest": file_digest(folder / "manifest.csv"),
    }
    write_json(folder / "dataset.json", dataset)
    return rejected


def _inspected(listing: Listing, memory: Path | None) -> Iterator[tuple[ListedFile, Seen]]:
    """Every file and what it is, in the order of the listing."""
    files = iter(listing.files)
    with (
        ThreadPoolExecutor() as pool,
        progress("prepare", len(listing.files)) as bar,
        closing(Memory(memory)) as known,
    ):
        while chunk := list(islice(files, _CHUNK)):
            before = known.recall([found.path for found in chunk])
            jobs = [(listing.root / found.path, before.get(found.path)) for found in chunk]
            news = {}
            for found, (_, old), seen in zip(chunk, jobs, pool.map(_look, jobs), strict=True):
                if not seen.state and (told := gone(listing.root)):
                    raise DataGoneError(told)
                if seen is not old:
                    news[found.path] = seen
                bar.advance(1)
                yield found, seen
            known.remember(news)
        known.forget_others()


def _look(job: tuple[Path, Seen | None]) -> Seen:
    return inspect(*job)


@contextmanager
def _table(path: Path, columns: Sequence[str]) -> Iterator[Callable[..., None]]:
    """A CSV file with a header line, in place once it is whole; gives what writes a row.

    Names that are not UTF-8 keep their bytes.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        plain = csv.writer(stream, lineterminator="\n")
        quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)

        def write_row(*values: Any) -> None:
            # Python before 3.13 leaves a lone \r unquoted, and reads it as the row's end.
            (quoted if any("\r" in str(value) for value in values) else plain).writerow(values)

        write_row(*columns)
        yield write_row
    partial.replace(path)


def _relative(root: Path, folder: Path) -> str:
    """The root as seen from the manifest when it lies inside (a copied demo stays whole)."""
    inside = root.is_relative_to(folder)
    return root.relative_to(folder).as_posix() if inside else str(root)
