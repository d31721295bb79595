"""Time and memory of `prepare` for many small images, without and with a cache.

    python -m benchmarks.prepare --counts 12500 25000 50000

The images (of various sizes, each with different bytes) are written to a temporary folder first.
Each measurement is a process of its own. `imports` is the peak after the imports; the rest grows
with the number of images.
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

_TEMPLATES = 64


def make(folder: Path, start: int, stop: int) -> None:
    """Writes the JPEG files `start` to `stop` - 1, in folders of a hundred classes."""
    templates = []
    for template in range(_TEMPLATES):
        stream = BytesIO()
        size = (64 + 2 * template, 160 - template)
        Image.effect_noise(size, 40).convert("RGB").save(stream, "JPEG", quality=60)
        templates.append(stream.getvalue())
    for number in range(start, stop):
        path = folder / f"class-{number % 100:02d}" / f"{number:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            templates[number % _TEMPLATES] + number.to_bytes(8, "big")
        )  # appended after the image


def measure(photos: Path, out: Path, cache: Path) -> dict[str, float]:
    """Prepares in this process. Returns the seconds, and the MB at the peak and after imports."""
    imports = _peak()
    start = time.perf_counter()
    listing = imagefolder.read(out, 0, root=photos)
    write_manifest(listing, "benchmark", out, 0.0, 8, cache)
    return {"seconds": time.perf_counter() - start, "imports": imports, "peak": _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _measure_in_process(*arguments: Path) -> dict[str, float]:
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.prepare import measure; "
        "print(json.dumps(measure(*map(Path, sys.argv[1:]))))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


@click.command()
@click.option("--counts", multiple=True, type=int, help="Numbers of images, one or more.")
@click.argument("more", nargs=-1, type=int, metavar="[COUNT]...")
def main(counts: tuple[int, ...], more: tuple[int, ...]) -> None:
    """Prints seconds, images/s and peak memory for each number of images."""
    numbers = sorted({*counts, *more} or {50_000})
    print("  images   cache   seconds  images/s  peak MB  of which imports")
    with tempfile.TemporaryDirectory() as scratch:
        photos, out = Path(scratch, "photos"), Path(scratch, "out")
        photos.mkdir()
        made = 0
        for number in numbers:
            make(photos, made, number)
            made = number
            cache = Path(scratch, f"{number}.sqlite")
            for state in ("cold", "warm"):
                result = _measure_in_process(photos, out, cache)
                print(
                    f"{number:8}  {state:6}  {result['seconds']:8.1f}  "
                    f"{number / result['seconds']:8.0f}  {result['peak']:7.0f}  "
                    f"{result['imports']:7.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
