"""Time and memory of prepare over many small images, cold and with its memory of an earlier time.

    python -m benchmarks.prepare --counts 12500 25000 50000

Makes the images in a scratch folder first (of varied sizes, each with bytes of its own). Every
measurement is a process of its own. `imports` is the peak after loading the libraries: what grows
with the number of images is the rest.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import click
from PIL import Image

from salmask.data.prepare import write_manifest
from salmask.datasets import imagefolder

_KINDS = 64


def make(folder: Path, start: int, stop: int) -> None:
    """JPEG files number start to stop - 1, in folders of a hundred classes."""
    kinds = []
    for kind in range(_KINDS):
        stream = BytesIO()
        size = (64 + 2 * kind, 160 - kind)
        Image.effect_noise(size, 40).convert("RGB").save(stream, "JPEG", quality=60)
        kinds.append(stream.getvalue())
    for number in range(start, stop):
        path = folder / f"class-{number % 100:02d}" / f"{number:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kinds[number % _KINDS] + number.to_bytes(8, "big"))  # after the image


def measure(photos: Path, out: Path, memory: Path) -> dict[str, float]:
    """One preparation in this process: seconds, and MB at its peak and after the imports."""
    imports = _peak()
    start = time.perf_counter()
    listing = imagefolder.read(out, 0, root=photos)
    write_manifest(listing, "benchmark", out, 0.0, 8, memory)
    return {"seconds": time.perf_counter() - start, "imports": imports, "peak": _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _apart(*arguments: Path) -> dict[str, float]:
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.prepare import measure; "
        "print(json.dumps(measure(*map(Path, sys.argv[1:]))))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--counts", multiple=True, type=int, help="Numbers of images, one or more.")
@click.argument("more", nargs=-1, type=int, metavar="[COUNT]...")
def main(counts: tuple[int, ...], more: tuple[int, ...]) -> None:
    """Prints seconds, images/s and the peak of memory for each number of images."""
    numbers = sorted({*counts, *more} or {50_000})
    print("  images  memory   seconds  images/s  peak MB  of which imports")
    with tempfile.TemporaryDirectory() as scratch:
        photos, out = Path(scratch, "photos"), Path(scratch, "out")
        photos.mkdir()
        made = 0
        for number in numbers:
            make(photos, made, number)
            made = number
            memory = Path(scratch, f"{number}.sqlite")
            for kind in ("cold", "warm"):
                found = _apart(photos, out, memory)
                print(
                    f"{number:8}  {kind:6}  {found['seconds']:8.1f}  "
                    f"{number / found['seconds']:8.0f}  {found['peak']:7.0f}  "
                    f"{found['imports']:7.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
