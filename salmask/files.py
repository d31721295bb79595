"""Digests of files, and atomic writing: a file is written under another name, then renamed."""

import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Errors of os.link where there are no hard links, or not between these two places.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS}


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with a final newline. Values of other types are written as text."""
    write_bytes(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not valid, or is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Writes tensors of any device as a safetensors file."""
    from safetensors.torch import save as to_bytes  # imports torch, which other writers do not need

    write_bytes(path, to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Writes a CSV file with a header line. Names that are not valid UTF-8 keep their bytes."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        plain = csv.DictWriter(stream, list(columns), lineterminator="\n")
        quoted = csv.DictWriter(
            stream, plain.fieldnames, lineterminator="\n", quoting=csv.QUOTE_ALL
        )
        plain.writeheader()
        for row in rows:
            # Python before 3.13 does not quote a single \r, but reads it as the end of the row.
            table = quoted if any("\r" in str(value) for value in row.values()) else plain
            table.writerow(row)
    partial.replace(path)


def link_or_copy(source: str, destination: str) -> None:
    """Gives a file a second name; where the file system has no hard links, copies it.

    Either way, the new name exists only when its content is complete. A `copy_function` of
    `shutil.copytree`.
    """
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        partial = f"{destination}.partial"
        shutil.copyfile(source, partial)
        os.replace(partial, destination)  # noqa: PTH105 (copytree passes texts)


def absolute(path: Path) -> Path:
    """The absolute path without `..`. Links are not followed: DVC may link files into its cache."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.resolve follows links)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """sha256 of a file, or of the sorted (name, sha256) pairs of all files below a folder."""
    if path.is_file():
        return file_digest(path)
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()


def value_digest(value: Any) -> str:
    """sha256 of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
