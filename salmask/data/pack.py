"""The image files of a manifest in a few large files, for disks where many small files are slow.

    runs/packs/<digest of the manifest>/
        00000.tar, ...      the files of consecutive rows, unchanged, under their paths
        index.safetensors   where each file is; written last
        lock                held by the process that writes

The bytes of every image are compared with the manifest when they are copied, and whenever they are
read. So no result depends on whether images come from a pack, and the folder may be removed while
no stage runs: stages then read the image files.
"""

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np

from salmask.data.file_bytes import ImageError, UnreadableError, missing_folder, open_with_digest
from salmask.errors import DataGoneError, UserError
from salmask.files import parse_json, write_bytes
from salmask.progress import progress

log = logging.getLogger(__name__)
_INDEX = "index.safetensors"
_SHARD_ROWS = 8192  # files in a shard, the unit of work; more if there would be too many shards
_MAX_SHARDS = 256  # a process that reads keeps all of them open
_READ_AT_ONCE = 64  # files that are in memory together


@dataclass(frozen=True, eq=False)
class Pack:
    """A finished pack of N files.

    Args:
        folder: of the shards.
        shard_rows: files in each shard but the last.
        places: (N,2) int64, first byte and number of bytes of each file in its shard.
    """

    folder: Path
    shard_rows: int
    places: np.ndarray

    def read(self, row: int, sha256: bytes) -> bytes:
        """The bytes of a file.

        Raises ImageError if they do not have the digest `sha256`, and DataGoneError if their shard
        is missing.
        """
        start, size = self.places[row].tolist()
        file = _shard_file(self.folder, row // self.shard_rows)
        try:
            content = os.pread(_descriptor(file), size, start)
        except FileNotFoundError:
            again = "restore it, or run `dvc repro --force prepare`"
            raise DataGoneError(f"{file} with images does not exist: {again}") from None
        except OSError as error:
            raise UnreadableError(f"{file} cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).digest() != sha256:
            raise ImageError(
                f"its copy in {file} is damaged: remove that file and run "
                "`dvc repro --force prepare`"
            )
        return content


def open_pack(folder: Path, digest: str) -> Pack | None:
    """The pack in a folder; None, with a warning, if it is not a finished pack of the manifest with
    the sha256 `digest`."""
    try:
        return _read_index(folder, digest)
    except ValueError as error:
        log.warning("no pack can be read in %s (%s); the image files are read", folder, error)
        return None


def write(
    folder: Path, root: Path, paths: Sequence[str], sha256: Sequence[str], digest: str
) -> None:
    """Copies the files of a manifest into a pack.

    A shard gets its name when it is complete: after an interruption, only missing shards are
    written, with the same bytes.

    Args:
        folder: of the pack. Another process must not write it at the same time.
        root: folder of the images.
        paths: of the N files, relative to `root`.
        sha256: digests of the files, hex.
        digest: sha256 of the manifest.

    Raises:
        DataGoneError: the folder of the images disappeared.
        UserError: a file cannot be read, or changed after it was listed.
    """
    from safetensors.numpy import save

    count, places = len(paths), []
    rows = max(_SHARD_ROWS, -(-count // _MAX_SHARDS))
    try:
        known = _read_index(folder, digest).places  # a shard may be missing nevertheless
    except ValueError:
        known = None
    with progress("pack", count) as bar:
        for start in range(0, count, rows):
            part = range(start, min(start + rows, count))
            file, names = _shard_file(folder, start // rows), [paths[row] for row in part]
            if known is not None and file.is_file():
                places.append(known[part.start : part.stop])
            else:
                if _names(file) != names:
                    _write_shard(file, root, names, [sha256[row] for row in part])
                places.append(_places(file))
            bar.advance(len(part))
    index = np.concatenate(places)
    content = hashlib.sha256(index.tobytes()).hexdigest()
    described = {"manifest": digest, "shard_rows": rows, "content": content}
    write_bytes(folder / _INDEX, save({"places": index}, {"salmask": json.dumps(described)}))


def _read_index(folder: Path, digest: str) -> Pack:
    """The pack of a manifest in a folder. Raises ValueError if its index is missing, damaged or of
    another manifest."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(folder / _INDEX), framework="numpy") as stored:
            described = parse_json(stored.metadata()["salmask"])
            places = stored.get_tensor("places")
        if described["manifest"] != digest:
            raise ValueError("it belongs to another manifest")
        if described["content"] != hashlib.sha256(places.tobytes()).hexdigest():
            raise ValueError("its index is damaged")
        return Pack(folder, int(described["shard_rows"]), places)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def _write_shard(file: Path, root: Path, names: list[str], sha256: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".partial")
    with (
        ThreadPoolExecutor() as pool,
        tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as shard,
    ):
        for start in range(0, len(names), _READ_AT_ONCE):
            part = slice(start, start + _READ_AT_ONCE)
            contents = pool.map(partial(_content, root), names[part], sha256[part])
            for name, content in zip(names[part], contents, strict=True):
                member = tarfile.TarInfo(name)  # without time and owner: equal bytes every time
                member.size = len(content)
                shard.addfile(member, BytesIO(content))
    unfinished.replace(file)


def _content(root: Path, name: str, sha256: str) -> bytes:
    """The bytes of a file that was listed with a digest."""
    try:
        with open_with_digest(root / name) as (digest, stream):
            content = stream.read()
    except ImageError as error:
        if message := missing_folder(root):
            raise DataGoneError(message) from None
        raise UserError(f"{root / name} cannot be packed ({error}): run `dvc repro`") from None
    if digest != sha256:
        raise UserError(f"{root / name} has changed since it was listed: run `dvc repro`")
    return content


def _names(file: Path) -> list[str]:
    """The names of the files in a shard; none if it is missing or not complete."""
    try:
        with _opened(file) as shard:
            return shard.getnames()
    except (OSError, tarfile.TarError):
        return []


def _places(file: Path) -> np.ndarray:
    """First byte and number of bytes (n,2) int64 of the files in a shard."""
    with _opened(file) as shard:
        places = [(member.offset_data, member.size) for member in shard]
    return np.array(places, dtype=np.int64)


def _opened(file: Path) -> tarfile.TarFile:
    return tarfile.open(file, "r:", encoding="utf-8")


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.tar"


@cache  # opening a file is what many small files pay for
def _descriptor(file: Path) -> int:
    return os.open(file, os.O_RDONLY)
