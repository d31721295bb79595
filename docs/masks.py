"""Draws docs/masks.png, the picture in the README: `python docs/masks.py`."""

import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from salmask.datasets.demo_images import render

ROWS = (307, 68, 86, 179)  # rows of the demo's validation split
SCALE = 3 / 4


def main() -> None:
    """Draws demo images at 224 px, masks them with `salmask gallery`, and reduces the picture to
    200 colours."""
    out = Path(__file__).parent / "masks.png"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{row}.png" for row in ROWS]
        for path, row in zip(paths, ROWS, strict=True):
            Image.fromarray(render(0, "val", row, side=224).image).save(path)
        subprocess.run(["salmask", "gallery", *map(str, paths), "--out", str(out)], check=True)
    sheet = Image.open(out).convert("RGB")
    size = int(sheet.width * SCALE), int(sheet.height * SCALE)
    sheet.resize(size, Image.Resampling.LANCZOS).quantize(200).save(out, optimize=True)


if __name__ == "__main__":
    main()
