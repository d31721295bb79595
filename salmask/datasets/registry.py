"""Named datasets. A source is a function (folder to write in, seed, *, root, options) -> Listing.

To add one, write the function and enter it in SOURCES. Images stay where they are; only the demo,
which has none yet, draws its own into the folder, and what comes as one binary file is taken apart.
A `root` that is a Path may be given as the watch file of that folder: the function gets the folder.
"""

import hashlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from salmask.data.prepare import Found, Listing
from salmask.datasets import archives, imagenet
from salmask.datasets import given_splits as datasets
from salmask.datasets import split_lists as listed
from salmask.datasets.demo_images import CLASSES, SPLITS, render
from salmask.datasets.folder_fingerprint import folder_of
from salmask.datasets.folders import EXTENSIONS, class_of, images_below, is_folder
from salmask.datasets.layout import LayoutError, wanted
from salmask.errors import UserError
from salmask.params.values import STRICT, Choice, bind, check, pick

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
    options = bind(source, Choice(choice.name, own), where)

    def listing(out: Path, seed: int) -> Listing:
        found = dict(options)
        try:
            if isinstance(found.get("root"), Path):
                found["root"] = folder_of(found["root"], f"{where}.root")
            return source(out, seed, **found)
        except LayoutError as error:
            told = (str(error), wanted(choice.name, found["root"]))
            raise UserError(". ".join(filter(None, told))) from None

    return check(policy, Policy, where), listing


def demo(
    out: Path, seed: int, *, root: str, images: dict[str, int] = SPLITS, first: int = 0
) -> Listing:
    """The procedural demo: drawn into out/images with the true object masks in out/masks.

    root: ignored; it stands in params.yaml for DVC to watch. images: how many per split. first:
    the number of a split's first drawing; from another one on, they are other drawings.
    """
    files = []
    for split, count in images.items():
        for kind in ("images", "masks"):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
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
    train = root / "train" if is_folder(root / "train") else None
    val = next((root / name for name in _VALIDATION if is_folder(root / name)), None)
    # "" is to be split by share
    bases = {train: "train", val: "val"} if train and val else {train or root: ""}
    walked = {base: images_below(base) for base in bases}
    names = {class_of(path) for images, _ in walked.values() for path in images} - {""}
    label = {name: number for number, name in enumerate(sorted(names))} | {"": -1}
    files, empty = [], []
    for base, split in bases.items():
        images, folders = walked[base]
        prefix = "" if base == root else f"{base.name}/"
        for path in images:
            kind = class_of(path)
            chosen = split or ("val" if kind and held_out(path, seed, val_share) else "train")
            files.append(Found(prefix + path, label[kind], chosen))
        filled = {path.partition("/")[0] for path in images}
        empty += [prefix + folder for folder in folders if folder not in filled]
    if not files:
        raise UserError(f"data.root: no images under {root} (looked for {', '.join(EXTENSIONS)})")
    # A class is shown in many places, so that its name must be text even if the folder's is not.
    classes = tuple(name.encode(errors="backslashreplace").decode() for name in sorted(names))
    return Listing(root.resolve(), classes, files, tuple(empty))


def held_out(path: str, seed: int, share: float) -> bool:
    """Whether the file at `path` is one of the share that is for testing; others change nothing."""
    word = hashlib.sha256(f"{seed}/{path}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(word[:8], "big") < share * 2**64


SOURCES: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "imagefolder": imagefolder,
    "splits": datasets.splits,
    "imagenet": imagenet.imagenet,
    "imagenet100": imagenet.imagenet100,
    "imagenette": imagenet.imagenette,
    "tinyimagenet": imagenet.tinyimagenet,
    "cifar10": archives.cifar10,
    "cifar100": archives.cifar100,
    "stl10": archives.stl10,
    "caltech101": datasets.caltech101,
    "flowers102": datasets.flowers102,
    "inat2018": listed.inat2018,
    "places205": listed.places205,
    "voc": listed.voc,
    "coco": listed.coco,
}
