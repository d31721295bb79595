"""Folders of ImageNet: its classes are folders named by WordNet ids."""

import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from salmask.datasets import ListedFile, Listing
from salmask.datasets.folders import LayoutError, images_below, is_folder, read_text, require_folder
from salmask.datasets.listing import shorten
from salmask.errors import UserError

LAYOUT = (
    "train/WNID/*.JPEG and val/WNID/*.JPEG, one folder per WordNet id; val may contain its images "
    "directly, as its archive does, if root also contains ILSVRC2012_devkit_t12.tar.gz, "
    "torchvision's meta.bin or Kaggle's LOC_val_solution.csv"
)
ORIGIN = "ImageNet's own site, or its challenge on Kaggle"
TERMS = "non-commercial research, after agreeing to the terms"

_WORDNET_ID = re.compile(r"n\d{8}")
_DEVKIT, _META, _KAGGLE = "ILSVRC2012_devkit_t12.tar.gz", "meta.bin", "LOC_val_solution.csv"


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a split's folder, sorted. Raises UserError."""
    try:
        return sorted(path.name for path in require_folder(folder).iterdir() if is_folder(path))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def wordnet_folders(root: Path, count: int) -> list[str]:
    """The WordNet ids of the folders in root/train. Raises LayoutError if there are not `count`."""
    train = root / "train"
    wordnet_ids = [name for name in class_folders(train) if _WORDNET_ID.fullmatch(name)]
    if len(wordnet_ids) != count:
        archives = any(train.glob("n*.tar"))
        raise LayoutError(
            f"{train} contains {len(wordnet_ids)} folders named by WordNet ids (such as n01440764) "
            f"instead of {count}"
            + (
                ". It contains .tar files: unpack each into a folder of its name"
                if archives
                else ""
            )
        )
    return wordnet_ids


def read_classes(root: Path, classes: Sequence[str]) -> Listing:
    """The images of some classes in root/train and root/val; a class is the name of its folder."""
    labels = {name: label for label, name in enumerate(classes)}
    files = []
    for split in ("train", "val"):
        folder = require_folder(root / split)
        flat = sorted(p.name for p in folder.glob("ILSVRC2012_val_*.*")) if split == "val" else []
        pairs = _flat_images(root, flat) if flat else _images_by_class(folder, classes)
        files += [
            ListedFile(f"{split}/{path}", labels[name], split)
            for path, name in pairs
            if name in labels
        ]
    return Listing(root.resolve(), tuple(classes), files)


def _images_by_class(folder: Path, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Path and class of every image in the class folders of a split."""
    missing = [name for name in classes if not is_folder(folder / name)]
    if missing:
        raise LayoutError(
            f"{folder} lacks {len(missing)} of {len(classes)} class folders: {shorten(missing)}"
        )
    for name in classes:
        yield from ((f"{name}/{path}", name) for path in images_below(folder / name)[0])


def _flat_images(root: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and class of the validation images directly in root/val."""
    if (root / _KAGGLE).is_file():
        rows = (line.partition(",") for line in read_text(root / _KAGGLE).splitlines())
        by_stem = {stem: rest.partition(" ")[0] for stem, _, rest in rows}
        classes = [by_stem.get(name.partition(".")[0], "") for name in names]
    else:
        classes = _classes_by_torchvision(root)
    known = sum(map(bool, classes))
    if {len(classes), known} != {len(names)}:
        raise LayoutError(
            f"{root / 'val'} contains {len(names)} images directly, but the classes of {known} "
            "images are known"
        )
    return zip(names, classes, strict=True)


def _classes_by_torchvision(root: Path) -> list[str]:
    """The class of every validation image, in the order of the names, as torchvision reads it."""
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    try:
        if (root / _META).is_file():
            return list(load_meta_file(str(root))[1])
        if not (root / _DEVKIT).is_file():
            raise LayoutError(
                f"{root}/val contains images instead of class folders, and {root} contains none of "
                f"{_DEVKIT}, {_META} and {_KAGGLE}, which list their classes"
            )
        with TemporaryDirectory() as scratch:  # `root` may be read-only
            parse_devkit_archive(scratch, str((root / _DEVKIT).resolve()))
            return list(load_meta_file(scratch)[1])
    except ImportError:
        raise UserError(f"{_DEVKIT} is read by scipy: pip install scipy") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError):
        raise LayoutError(f"{root}: torchvision cannot read {_META} or {_DEVKIT}") from None
