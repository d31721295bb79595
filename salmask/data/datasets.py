"""Sources whose splits someone gave: lists or folders, and what published protocols say.

Splits are `train`, `val` and `test`, or `train` and `val` where nobody names a third. Nothing is
downloaded.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from salmask.data.folders import class_of, images_below, is_folder
from salmask.data.preparation import Found, Listing
from salmask.errors import UserError

_BACKGROUND = "BACKGROUND_Google"  # of Caltech-101: not a class


def splits(
    out: Path,
    seed: int,
    *,
    root: Path,
    train: str = "train",
    val: str | None = None,
    test: str = "test",
) -> Listing:
    """A folder of images whose splits are given, each by the name of a folder in it that holds
    CLASS/..., or of a text file in it (`.txt` may be left out) with a path CLASS/... per line.

    val: null for `val` where there is such a thing, else no validation split.
    """
    asked = {"train": train, "val": val or "val", "test": test}
    files: dict[str, str] = {}
    for split, name in asked.items():
        found = _paths(root, name)
        if found is None and (split != "val" or val is not None):
            raise UserError(f"{root}: no folder {name} in it, nor a list {name} or {name}.txt")
        for path in found or []:
            if files.setdefault(path, split) != split:
                raise UserError(f"{root}: {path} is of {files[path]} and of {split}")
    # of a list, the class is the first folder; of a split's own folder, the next
    kinds = {
        path: class_of(path.removeprefix(f"{asked[s]}/") if is_folder(root / asked[s]) else path)
        for path, s in files.items()
    }
    return _listing(root, kinds, files)


def _paths(root: Path, name: str) -> list[str] | None:
    """The images of a split, relative to `root`; None where nothing of this name says which."""
    if is_folder(root / name):
        return [f"{name}/{path}" for path in images_below(root / name)[0]]
    lists = [root / name, root / f"{name}.txt"]
    file = next((path for path in lists if path.is_file()), None)
    if file is None:
        return None
    lines = [line.strip() for line in file.read_text(errors="surrogateescape").splitlines()]
    return [line for line in lines if line]


def caltech101(
    out: Path, seed: int, *, root: Path, train: PositiveInt = 25, val: NonNegativeInt = 5
) -> Listing:
    """Caltech-101 as root/CLASS/...: 25 training and 5 validation images of every class, chosen by
    the seed without replacement, the rest for testing; without the background, which is no class.
    """
    if not is_folder(root):
        raise UserError(f"{root}: no such folder")
    kinds = {path: class_of(path) for path in images_below(root)[0]}
    kinds = {path: kind for path, kind in kinds.items() if kind not in ("", _BACKGROUND)}
    files = {}
    for kind in sorted(set(kinds.values())):
        own = sorted((p for p in kinds if kinds[p] == kind), key=lambda path: _lot(seed, path))
        if len(own) <= train + val:
            raise UserError(
                f"{root}: class {kind} has {len(own)} images; {train} for training and {val} for "
                "validation leave none to test on"
            )
        for place, path in enumerate(own):
            files[path] = "train" if place < train else "val" if place < train + val else "test"
    return _listing(root, kinds, dict(sorted(files.items())))


def flowers102(out: Path, seed: int, *, root: Path) -> Listing:
    """Oxford Flowers-102 by its official split (1020, 1020 and 6149 images): jpg/, imagelabels.mat
    and setid.mat in root, as its authors give them."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("flowers102 reads .mat files with scipy: pip install scipy") from None
    try:
        labels = loadmat(root / "imagelabels.mat")["labels"].ravel().tolist()
        sets = loadmat(root / "setid.mat")
        numbers = {s: sets[k].ravel().tolist() for s, k in _FLOWER_SETS.items()}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{root}: imagelabels.mat and setid.mat must lie there: {error}") from None
    chosen = {number: split for split, own in numbers.items() for number in own}
    files = {f"jpg/image_{number:05d}.jpg": split for number, split in sorted(chosen.items())}
    kinds = {f"jpg/image_{n:05d}.jpg": f"{labels[n - 1]:03d}" for n in chosen}
    return _listing(root, kinds, files)


_FLOWER_SETS = {"train": "trnid", "val": "valid", "test": "tstid"}


def cifar10(out: Path, seed: int, *, root: Path) -> Listing:
    """CIFAR-10 from its python version in root, as torchvision keeps it; see `_cifar`."""
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, out, root)


def cifar100(out: Path, seed: int, *, root: Path) -> Listing:
    """CIFAR-100, likewise."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, out, root)


def _cifar(kind: Callable[..., Any], out: Path, root: Path) -> Listing:
    """Its images as PNG files in out/images: 50,000 of train, 10,000 of val."""
    files = []
    for split in ("train", "val"):
        try:
            data = kind(root=str(root), train=split == "train", download=False)
        except RuntimeError as error:
            raise UserError(f"{root}: {error}; put the extracted archive there") from None
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        for index, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
            name = f"{split}/{index:05d}.png"
            Image.fromarray(pixels).save(out / "images" / name)
            files.append(Found(name, int(label), split))
    return Listing(out / "images", tuple(data.classes), files)


def _listing(root: Path, kinds: dict[str, str], files: dict[str, str]) -> Listing:
    """kinds: path -> class; files: path -> split, in the order of the listing."""
    classes = sorted({kinds[path] for path in files} - {""})
    if not classes:
        raise UserError(f"{root}: no images in folders of classes")
    label = {kind: number for number, kind in enumerate(classes)} | {"": -1}
    found = [Found(path, label[kinds[path]], split) for path, split in files.items()]
    shown = tuple(kind.encode(errors="backslashreplace").decode() for kind in classes)
    return Listing(root.resolve(), shown, found)


def _lot(seed: int, path: str) -> bytes:
    return hashlib.sha256(f"{seed}/{path}".encode(errors="surrogateescape")).digest()
