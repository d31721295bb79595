"""Time to read images from a pack, beside that of reading single files, on the disk of a folder.

    python -m benchmarks.pack --folder /network/scratch

Files of random bytes are read in random order. Before each round, the kernel drops what it keeps of
them in memory, so that the wall clock shows the disk, apart from what the kernel keeps about names.
On a network disk, other clients and the server's memory matter too. A pack also checks the digest
of every file, which single files in a training do not get.
"""

import hashlib
import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.ratios import Times, interleaved, milliseconds, ratio
from salmask.data import pack
from salmask.data.file_bytes import open_file


def forget(folder: Path) -> None:
    """Makes the kernel drop the content of all files in a folder from its memory."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(folder: Path, count: int, size: int, rounds: int) -> tuple[Times, Times, float]:
    """Seconds of reading all files, by the wall clock and of the CPU, and seconds of packing."""
    images, packed = folder / "images", folder / "pack"
    images.mkdir()
    random, names, digests = np.random.default_rng(0), [], []
    for number in range(count):
        content = random.bytes(size)
        names.append(f"{number:06d}.jpg")
        digests.append(hashlib.sha256(content).digest())
        (images / names[-1]).write_bytes(content)
    start = time.perf_counter()
    pack.write(packed, images, names, [digest.hex() for digest in digests], "benchmark")
    seconds = time.perf_counter() - start
    opened = pack.open_pack(packed, "benchmark")
    assert opened is not None
    order = random.permutation(count).tolist()

    def read_files() -> None:
        for row in order:
            with open_file(images / names[row]) as stream:
                stream.read()

    def read_pack() -> None:
        for row in order:
            opened.read(row, digests[row])

    work = {"files": read_files, "pack": read_pack}
    before = {"files": lambda: forget(images), "pack": lambda: forget(packed)}
    wall = interleaved(work, rounds, before, time.perf_counter)
    return wall, interleaved(work, rounds), seconds


@click.command()
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="On the disk to test.")
@click.option("--count", default=2000, show_default=True, help="Number of files.")
@click.option("--size", default=110_000, show_default=True, help="Bytes of a file.")
@click.option("--rounds", default=3, show_default=True)
def main(folder: Path | None, count: int, size: int, rounds: int) -> None:
    """Prints milliseconds per file."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wall, cpu, seconds = measure(Path(scratch), count, size, rounds)
    print(f"{count} files of {size} bytes, packed in {1000 * seconds / count:.2f} ms per file")
    for title, times in (("wall clock, from disk", wall), ("CPU, from memory", cpu)):
        files, packed = (milliseconds(times, name, count) for name in ("files", "pack"))
        relative = ratio(times, "pack", "files")
        print(f"{title:24} files {files:.3f} ms, pack {packed:.3f} ms, ratio {relative:.2f}")


if __name__ == "__main__":
    main()
