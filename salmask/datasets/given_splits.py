"""Folders whose splits someone gave: lists or folders, and what published protocols say.

Splits are `train`, `val` and `test`, or `train` and `val` where nobody names a third.
"""

import hashlib
from io import BytesIO
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from salmask.data.prepare import Found, Listing
from salmask.datasets.folders import class_of, images_below, is_folder
from salmask.datasets.layout import LayoutError, content, folder, inner
from salmask.errors import UserError

_BACKGROUND = "BACKGROUND_Google"  # of Caltech-101: not a class
_CALTECH = ("", "caltech-101/", "caltech101/")


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
    """Caltech-101 as CLASS/... in root or in its folder 101_ObjectCategories, be that in root or
    where the archive or torchvision puts it: 25 training and 5 validation images of every class,
    chosen by the seed without replacement, the rest for testing; without the background, which is
    no class.
    """
    root = inner(root, *(f"{place}101_ObjectCategories" for place in _CALTECH))
    kinds = {path: class_of(path) for path in images_below(root)[0]}
    kinds = {path: kind for path, kind in kinds.items() if kind not in ("", _BACKGROUND)}
    classes = sorted(set(kinds.values()))
    if len(classes) < 2:
        raise LayoutError(f"{root}: folders of classes with images: {', '.join(classes) or 'none'}")
    files = {}
    for kind in classes:
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
    and setid.mat, as its authors give them, in root or, as torchvision keeps them, in
    root/flowers-102."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise UserError("flowers102 reads .mat files with scipy: pip install scipy") from None
    root = inner(root, "flowers-102")
    folder(root / "jpg")
    told = {name: BytesIO(content(root / f"{name}.mat")) for name in ("imagelabels", "setid")}
    try:
        labels = loadmat(told["imagelabels"])["labels"].ravel().tolist()
        sets = loadmat(told["setid"])
        numbers = {s: sets[k].ravel().tolist() for s, k in _FLOWER_SETS.items()}
    except (KeyError, ValueError, MatReadError) as error:
        raise LayoutError(f"imagelabels.mat or setid.mat of {root}: {error!r} is odd") from None
    chosen = {number: split for split, own in numbers.items() for number in own}
    files = {f"jpg/image_{number:05d}.jpg": split for number, split in sorted(chosen.items())}
    kinds = {f"jpg/image_{n:05d}.jpg": f"{labels[n - 1]:03d}" for n in chosen}
    return _listing(root, kinds, files)


_FLOWER_SETS = {"train": "trnid", "val": "valid", "test": "tstid"}


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
