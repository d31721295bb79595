"""The columns of a manifest, from manifest.csv or from manifest.safetensors beside it.

The binary file opens in a fraction of the time and memory. It holds the digest of the CSV file that
it was made from, and a digest of its own content. Without it, or when it does not agree, the CSV
file is read: the result is the same.
"""

import csv
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from salmask.files import parse_json, write_bytes

log = logging.getLogger(__name__)
FILE = "manifest.safetensors"
_ENCODING = ("utf-8", "surrogateescape")  # names that are not valid UTF-8 keep their bytes


class Texts(Sequence[str]):
    """Strings in one block of memory, which are decoded when they are read.

    Args:
        content: (bytes,) uint8, all strings in a row.
        ends: (N,) int64, where each string ends.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        start = int(self.ends[row - 1]) if row else 0
        return self.content[start : int(self.ends[row])].tobytes().decode(*_ENCODING)

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def tolist(self) -> list[str]:
        return list(self)


class Digests(Sequence[str]):
    """sha256 digests. One entry is a text of hex digits.

    Args:
        raw: (N,32) uint8.
    """

    def __init__(self, raw: np.ndarray) -> None:
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [one.tobytes().hex() for one in self.raw[row]]
        return str(self.raw[row].tobytes().hex())


@dataclass(frozen=True)
class Columns:
    """The N rows of a manifest.

    Args:
        paths: relative to the images' folder.
        split_names: in order of appearance.
        splits: (N,) int16, positions in `split_names`.
        labels: (N,) int32; -1 for none.
        sizes: (N,2) int32, height and width in px.
        sha256: of each file.
    """

    paths: Texts
    split_names: tuple[str, ...]
    splits: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    sha256: Digests


def read(folder: Path, digest: str) -> Columns:
    """The columns of manifest.csv in `folder`, which has the sha256 `digest`."""
    columns = _read_binary(folder / FILE, digest)
    return columns if columns is not None else read_csv(folder / "manifest.csv")


def read_csv(file: Path) -> Columns:
    """The columns of a CSV file, which is read row by row."""
    paths, ends, sha256 = bytearray(), array("q"), bytearray()
    splits, labels, sizes = array("h"), array("i"), array("i")
    codes: dict[str, int] = {}
    encoding, errors = _ENCODING
    with file.open(newline="", encoding=encoding, errors=errors) as stream:
        lines = csv.reader(stream)
        header = next(lines)
        order = [header.index(n) for n in ("path", "split", "label", "height", "width", "sha256")]
        for line in lines:
            path, split, label, height, width, digest = (line[i] for i in order)
            paths += path.encode(encoding, errors)
            ends.append(len(paths))
            splits.append(codes.setdefault(split, len(codes)))
            labels.append(int(label))
            sizes.append(int(height))
            sizes.append(int(width))
            sha256 += bytes.fromhex(digest)
    return Columns(
        Texts(np.frombuffer(paths, np.uint8), np.frombuffer(ends, np.int64)),
        tuple(codes),
        np.frombuffer(splits, np.int16),
        np.frombuffer(labels, np.int32),
        np.frombuffer(sizes, np.int32).reshape(-1, 2),
        Digests(np.frombuffer(sha256, np.uint8).reshape(-1, 32)),
    )


def write_binary(folder: Path, digest: str) -> None:
    """Writes manifest.safetensors for manifest.csv, whose sha256 is `digest`."""
    from safetensors.numpy import save

    columns = read_csv(folder / "manifest.csv")
    tensors = {
        "path": columns.paths.content,
        "path_end": columns.paths.ends,
        "split": columns.splits,
        "label": columns.labels,
        "size": columns.sizes,
        "sha256": columns.sha256.raw,
    }
    described = {
        "manifest": digest,
        "splits": columns.split_names,
        "content": _content_digest(tensors, columns.split_names),
    }
    # One entry, since the order of several differs between processes.
    metadata = {"salmask": json.dumps(described)}
    write_bytes(folder / FILE, save(tensors, metadata))


def _read_binary(file: Path, digest: str) -> Columns | None:
    """The columns in a binary file; None if it is missing, damaged, or of another CSV file."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(os.fspath(file), framework="numpy") as stored:
            described: dict[str, Any] = parse_json(stored.metadata()["salmask"])
            if described["manifest"] != digest:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if described["content"] != _content_digest(tensors, described["splits"]):
            raise ValueError("its content has changed")
        return Columns(
            Texts(tensors["path"], tensors["path_end"]),
            tuple(described["splits"]),
            tensors["split"],
            tensors["label"],
            tensors["size"],
            Digests(tensors["sha256"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s); manifest.csv is read instead", file, error)
        return None


def _content_digest(tensors: dict[str, np.ndarray], split_names: Sequence[str]) -> str:
    sha = hashlib.sha256(json.dumps(list(split_names)).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        sha.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return sha.hexdigest()
