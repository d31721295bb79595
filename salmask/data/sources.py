"""Named datasets. A source is a function (folder to write in, seed, *, root, options) -> Listing.

To add one, write the function and enter it in SOURCES. Images stay where they are; only the demo,
which has none yet, draws its own into the folder.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from salmask.data.demo import CLASSES, SPLITS, render
from salmask.data.manifest import Found, Listing
from salmask.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_VALIDATION = ("val", "valid", "validation", "test")


def demo(out: Path, seed: int, *, root: str, images: dict[str, int] = SPLITS) -> Listing:
    """The procedural demo: drawn into out/images with the true object masks in out/masks.

    root: ignored; it stands in params.yaml for DVC to watch. images: how many per split.
    """
    files = []
    for split, count in images.items():
        for kind in ("images", "masks"):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            drawn = render(seed, split, index)
            name = f"{split}/{index:05d}.png"
            Image.fromarray(drawn.image).save(out / "images" / name)
            Image.fromarray(drawn.mask).save(out / "masks" / name)
            files.append(Found(name, drawn.label, split))
    return Listing(out / "images", CLASSES, files)


def imagefolder(out: Path, seed: int, *, root: Path, val_share: float = 0.1) -> Listing:
    """A folder of images, in any of three layouts.

    root/train/CLASS/... and root/val/CLASS/... (or valid, validation, test); or root/CLASS/...,
    of which `val_share` becomes the validation split, chosen by a hash of seed and path, so that
    adding images moves none; or images without class folders, all of them for training.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    train = root / "train"
    val = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    if train.is_dir() and val is not None:
        labelled = [(path, "train") for path in _images(train)]
        labelled += [(path, "val") for path in _images(val)]
        bases = {"train": train, "val": val}
    else:
        base = train if train.is_dir() else root
        labelled = [(path, _split(path, base, seed, val_share)) for path in _images(base)]
        bases = {"train": base, "val": base}
    if not labelled:
        raise UserError(f"data.root: no images under {root} (looked for {', '.join(EXTENSIONS)})")
    named = [(path, split, _class_of(path, bases[split])) for path, split in labelled]
    classes = tuple(sorted({name for _, _, name in named if name}))
    index = {name: label for label, name in enumerate(classes)}
    return Listing(
        root.resolve(),
        classes,
        [
            Found(path.relative_to(root).as_posix(), index.get(name, -1), split)
            for path, split, name in named
        ],
    )


def _images(folder: Path) -> list[Path]:
    """Every file with an image's extension below a folder, sorted by path.

    Links to folders are followed, each folder once, so that a loop of links ends.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for base, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()  # which of two links to one folder comes first must not depend on the disk
        found += [Path(base, n) for n in names if n.lower().endswith(EXTENSIONS)]
    return sorted(found)


def _class_of(path: Path, base: Path) -> str:
    """The first folder below `base`, or "" for an image that lies in it directly."""
    parts = path.relative_to(base).parts
    return parts[0] if len(parts) > 1 else ""


def _split(path: Path, base: Path, seed: int, val_share: float) -> str:
    if not _class_of(path, base):
        return "train"
    word = hashlib.sha256(f"{seed}/{path.relative_to(base).as_posix()}".encode()).digest()
    return "val" if int.from_bytes(word[:8], "big") < val_share * 2**64 else "train"


SOURCES: dict[str, Callable[..., Any]] = {"demo": demo, "imagefolder": imagefolder}
