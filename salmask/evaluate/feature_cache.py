"""Features on disk, which are computed once for all evaluations of a project.

    runs/features/<digest of the key>/
        key.json      everything that decides the features; width and type of the rows; a digest
        features.bin  (N,D) float32; bfloat16 if the network computes in it, which loses nothing
        shards/       a done-mark for each shard, with the sha256 of its bytes
        lock          held by the processes that fill the folder

A shard is the unit of work. Its done-mark is written after its bytes, so that a computation that
was killed continues with the missing shards and ends in the same bytes. Shards are checked before
every use: a shard without a mark, or with other bytes, is computed. So no result depends on what is
in the folder, and the folder may be removed at any time.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmask.distributed import all_reduce_max, broadcast_from_first, rank, world_size
from salmask.files import parse_json, value_digest, write_json
from salmask.progress import progress
from salmask.threads import thread_pool

_BATCHES = 32  # of a shard
_POLL_SECONDS = 1.0
_CHECKS = 4  # shards that are read at the same time to check them
Batches = Iterator[tuple[Tensor, bool]]
"""Features (b,D) of each batch, and whether all its images could be read."""


def load_or_compute(
    root: Path,
    key: Mapping[str, Any],
    count: int,
    batch: int,
    example: Callable[[], Tensor],
    compute: Callable[[Tensor], Batches],
    title: str,
) -> Tensor:
    """The features of a key, of which only missing shards are computed.

    The processes of a group share the work. A process that finds another one at work on the same
    features waits for it.

    Args:
        root: the folder of all features.
        key: everything that decides the features, as a JSON-like value.
        count: number of rows N.
        batch: rows per batch.
        example: the network's output (1,D) for any image, in the type in which it is computed.
        compute: positions (n,) int64 in [0, N), in whole batches -> the features of each batch.
        title: of the progress lines.

    Returns:
        (N,D) float32 in the main memory. It maps the file: its pages are read when they are used,
        and changes of the tensor stay in this process.
    """
    folder = root / value_digest(key)[:16]
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    with _lock_of_group(folder):
        width, dtype = _layout(folder, key, example)
        rows = batch * _BATCHES
        shards = [range(i, min(i + rows, count)) for i in range(0, count, rows)]
        row_bytes = width * dtype.itemsize
        own = range(rank(), len(shards), world_size())
        with thread_pool(_CHECKS) as pool:
            done = pool.map(lambda i: _is_done(folder, i, shards[i], row_bytes), own)
            todo = [i for i, is_done in zip(own, done, strict=True) if not is_done]
        if todo:
            _fill(folder, shards, todo, row_bytes, dtype, compute, title)
        all_reduce_max(0)  # wait for the shards of all processes
        file = str(folder / "features.bin")
        stored = torch.from_file(file, shared=False, size=count * width, dtype=dtype)
        all_reduce_max(0)  # all processes have opened the file, which may now be removed
    return stored.view(count, width).float()  # a float32 file is not copied


def _layout(
    folder: Path, key: Mapping[str, Any], example: Callable[[], Tensor]
) -> tuple[int, torch.dtype]:
    """The width D and the type of the rows, from key.json, which is written if it is missing."""
    file = folder / "key.json"

    def read_or_write() -> tuple[int, str]:
        try:
            stored = parse_json(file.read_bytes())
            if stored.pop("sha256") == value_digest(stored):
                return int(stored["width"]), str(stored["dtype"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged
            pass
        output = example()
        dtype = "bfloat16" if output.dtype == torch.bfloat16 else "float32"
        content = dict(key) | {"width": output.shape[1], "dtype": dtype}
        write_json(file, content | {"sha256": value_digest(content)})
        return output.shape[1], dtype

    width, name = broadcast_from_first(read_or_write)
    return width, torch.bfloat16 if name == "bfloat16" else torch.float32


def _fill(
    folder: Path,
    shards: Sequence[range],
    todo: Sequence[int],
    row_bytes: int,
    dtype: torch.dtype,
    compute: Callable[[Tensor], Batches],
    title: str,
) -> None:
    """Computes the shards `todo`, each with its done-mark.

    A shard with an image that could not be read gets no mark, so that the next evaluation computes
    it again.
    """
    positions = torch.cat([torch.arange(shards[i].start, shards[i].stop) for i in todo])
    batches = compute(positions)
    descriptor = os.open(folder / "features.bin", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with progress(title, len(positions)) as bar:
            for index in todo:
                sha, complete, offset = hashlib.sha256(), True, shards[index].start
                while offset < shards[index].stop:
                    features, readable = next(batches)
                    content = _bytes(features.to(dtype))
                    _write(descriptor, content, offset * row_bytes)
                    sha.update(content)
                    complete &= readable
                    offset += len(features)
                    bar.advance(len(features))
                os.fsync(descriptor)
                if complete:
                    write_json(_mark(folder, index), {"sha256": sha.hexdigest()})
    finally:
        os.close(descriptor)


def _bytes(features: Tensor) -> memoryview:
    return memoryview(features.cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while len(content):
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _is_done(folder: Path, index: int, rows: range, row_bytes: int) -> bool:
    """Whether a shard has a done-mark that agrees with its bytes."""
    try:
        digest = parse_json(_mark(folder, index).read_bytes())["sha256"]
        sha, left = hashlib.sha256(), len(rows) * row_bytes
        with (folder / "features.bin").open("rb") as stream:
            stream.seek(rows.start * row_bytes)
            while left and (content := stream.read(min(left, 1 << 20))):
                sha.update(content)
                left -= len(content)
        return bool(not left and sha.hexdigest() == digest)
    except (OSError, ValueError, KeyError, TypeError):  # missing, or incomplete after a crash
        return False


def _mark(folder: Path, index: int) -> Path:
    return folder / "shards" / f"{index:05d}.json"


@contextmanager
def _lock_of_group(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder in the first process, for all processes of the group.

    The others must not wait in a collective operation for hours, which would time out. So the first
    process tries again and again, and sends each result to them.
    """
    with (folder / "lock").open("a+") as stream:
        attempts = 0
        while not broadcast_from_first(lambda: _try_lock(stream.fileno())):
            if attempts == 2 and rank() == 0:
                print(f"another process computes {folder}; waiting for it", flush=True)
            attempts += 1
            time.sleep(_POLL_SECONDS)
        yield  # closing the file releases the lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
