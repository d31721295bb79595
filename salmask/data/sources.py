"""Named datasets. A source is a function (folder to write in, seed, *, root, options) -> Listing.

To add one, write the function and enter it in SOURCES. Images stay where they are; only the demo,
which has none yet, draws its own into the folder.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from salmask.config import STRICT, Choice, bind, check, pick
from salmask.data.demo import CLASSES, SPLITS, render
from salmask.data.folders import is_folder, walk
from salmask.data.preparation import Found, Listing
from salmask.data.watch import folder_of
from salmask.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_VALIDATION = ("val", "valid", "validation", "test")


@dataclass(frozen=True, config=STRICT)
class Policy:
    """Options of `data` for any source. max_rejected: the share of unusable files that is still
    accepted. min_side: px; smaller images are not used."""

    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_side: PositiveInt = 8


def configured(choice: Choice, where: str) -> tuple[Policy, Callable[[Path, int], Listing]]:
    """What the `data` section asks for, every option checked: the policy, and the source with its
    options as a function (folder to write in, seed) -> Listing. Raises UserError."""
    common = {field.name for field in fields(Policy)}
    policy = {key: value for key, value in choice.options.items() if key in common}
    own = {key: value for key, value in choice.options.items() if key not in common}
    source = pick(SOURCES, choice, where)
    return (
        check(policy, Policy, where),
        partial(source, **bind(source, Choice(choice.name, own), where)),
    )


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
    adding images moves none; or images without class folders, all of them for training. `root` may
    also be the watch file of that folder.
    """
    root = folder_of(root)
    train = root / "train" if is_folder(root / "train") else None
    val = next((root / name for name in _VALIDATION if is_folder(root / name)), None)
    # "" is to be split by share
    bases = {train: "train", val: "val"} if train and val else {train or root: ""}
    walked = {base: _walk(base) for base in bases}
    names = {_class_of(path) for images, _ in walked.values() for path in images} - {""}
    label = {name: number for number, name in enumerate(sorted(names))} | {"": -1}
    files, empty = [], []
    for base, split in bases.items():
        images, folders = walked[base]
        prefix = "" if base == root else f"{base.name}/"
        for path in images:
            kind = _class_of(path)
            chosen = split or ("val" if kind and _held_out(path, seed, val_share) else "train")
            files.append(Found(prefix + path, label[kind], chosen))
        filled = {path.partition("/")[0] for path in images}
        empty += [prefix + folder for folder in folders if folder not in filled]
    if not files:
        raise UserError(f"data.root: no images under {root} (looked for {', '.join(EXTENSIONS)})")
    # A class is shown in many places, so that its name must be text even if the folder's is not.
    classes = tuple(name.encode(errors="backslashreplace").decode() for name in sorted(names))
    return Listing(root.resolve(), classes, files, tuple(empty))


def _walk(base: Path) -> tuple[list[str], list[str]]:
    """Every file with an image's extension below a folder, and the folders right in it; sorted.

    Paths are relative to the folder. Links to folders are followed, each folder once, so that a
    loop of links ends. A folder below that cannot be listed stands among the files, to be refused
    with its reason; raises UserError when it is the folder itself.
    """

    def unlisted(error: OSError) -> None:
        if Path(error.filename) == base:
            raise UserError(f"data.root: {base} cannot be listed: {error.strerror}")
        images.append(os.path.relpath(error.filename, base))

    images: list[str] = []
    folders: list[str] = []
    for here, below, names in walk(base, unlisted):
        if here == base:
            folders, prefix = list(below), ""
        else:
            prefix = f"{os.path.relpath(here, base)}/"
        images += [prefix + name for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(images, key=lambda path: path.split("/")), folders


def _class_of(path: str) -> str:
    """The first folder of a path, or "" for an image that lies in none."""
    return path.partition("/")[0] if "/" in path else ""


def _held_out(path: str, seed: int, share: float) -> bool:
    word = hashlib.sha256(f"{seed}/{path}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(word[:8], "big") < share * 2**64


SOURCES: dict[str, Callable[..., Any]] = {"demo": demo, "imagefolder": imagefolder}
