"""Large sets whose splits are lists of files, in the words of their authors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from salmask.data.prepare import Found, Listing
from salmask.datasets.folders import images_below, is_folder
from salmask.datasets.layout import LayoutError, folder, inner, text

_SPLITS = ("train", "val")
_PLACES = ("data/vision/torralba/deeplearning/images256", "images256", ".")


def inat2018(out: Path, seed: int, *, root: Path) -> Listing:
    """iNaturalist 2018 by root/train2018.json and root/val2018.json (437,513 and 24,426 images of
    8,142 categories); images in root/train_val2018, which torchvision calls root/2018. A class is
    called by its category's number."""
    names = ("train_val2018", "2018")
    images = next((name for name in names if is_folder(root / name)), None)
    if images is None:
        raise LayoutError(f"{root}: no folder train_val2018 in it, nor torchvision's 2018")
    files: list[Found] = []
    classes: list[int] = []
    for split in _SPLITS:
        file = root / f"{split}2018.json"
        try:
            told = json.loads(text(file))
            kinds = {entry["image_id"]: entry["category_id"] for entry in told["annotations"]}
            classes = classes or sorted(entry["id"] for entry in told["categories"])
            label = {kind: number for number, kind in enumerate(classes)}
            for image in told["images"]:
                path = f"{images}/{image['file_name'].removeprefix('train_val2018/')}"
                files.append(Found(path, label[kinds[image["id"]]], split))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"{error!r} is missing or odd"
            raise LayoutError(f"{file} is not in iNaturalist's format: {said}") from None
    _one_is_there(root, files)
    return Listing(root.resolve(), tuple(map(str, classes)), files)


def places205(out: Path, seed: int, *, root: Path) -> Listing:
    """Places-205 by root/trainvalsplit_places205/train_places205.csv and val_places205.csv, a path
    and a class's number a line; images below one of `_PLACES`. A class is called by the folder of
    its first image."""
    files: list[Found] = []
    names: dict[int, str] = {}
    base = ""
    for split in _SPLITS:
        listed = root / "trainvalsplit_places205" / f"{split}_places205.csv"
        for path, number in _rows(listed):
            if not files:
                base = _base(root, path)
            names.setdefault(number, path.rpartition("/")[0])
            files.append(Found(base + path, number, split))
    if sorted(names) != list(range(len(names))):
        raise LayoutError(f"{root}: classes are not numbered from 0 on, but {sorted(names)[:9]}...")
    return Listing(root.resolve(), tuple(names[number] for number in sorted(names)), files)


def voc(
    out: Path, seed: int, *, root: Path, years: tuple[Literal[2007, 2012], ...] = (2007, 2012)
) -> Listing:
    """PASCAL VOC's images, without labels, since one shows objects of several classes: `trainval`
    of the years to train on; `test`, where a year has it (2007), as val. The years' folders lie in
    root, or in root/VOCdevkit."""
    root = inner(root, "VOCdevkit")
    files = []
    for year in years:
        folder(root / f"VOC{year}" / "JPEGImages")
        sets = root / f"VOC{year}" / "ImageSets" / "Main"
        parts = {"trainval": "train"} | ({"test": "val"} if (sets / "test.txt").exists() else {})
        for part, split in parts.items():
            names = text(sets / f"{part}.txt").split()
            files += [Found(f"VOC{year}/JPEGImages/{name}.jpg", -1, split) for name in names]
    _one_is_there(root, files)
    return Listing(root.resolve(), (), files)


def coco(out: Path, seed: int, *, root: Path) -> Listing:
    """COCO 2017's images, without labels: train2017 to train on, val2017, where it is, as val; in
    root, or in root/images."""
    root = inner(root, "images")
    folder(root / "train2017")
    parts = {f"{split}2017": split for split in _SPLITS if is_folder(root / f"{split}2017")}
    return Listing(
        root.resolve(),
        (),
        [
            Found(f"{part}/{path}", -1, split)
            for part, split in parts.items()
            for path in images_below(root / part)[0]
        ],
    )


def _rows(listed: Path) -> Iterator[tuple[str, int]]:
    """Path and class's number of every line."""
    for count, line in enumerate(text(listed).splitlines(), 1):
        path, _, number = line.rstrip().rpartition(" ")
        if not path or not number.isdecimal():
            raise LayoutError(f"{listed}, line {count}: no path and number: {line[:99]!r}")
        yield path, int(number)


def _base(root: Path, path: str) -> str:
    """Where the images lie, of `_PLACES`, to be set before their paths."""
    for place in _PLACES:
        if (root / place / path).exists():
            return "" if place == "." else f"{place}/"
    places = ", ".join(_PLACES[:-1])
    raise LayoutError(f"{root}: {path}, the first of the list, is neither there nor in {places}")


def _one_is_there(root: Path, files: list[Found]) -> None:
    """Before a list of images that lie elsewhere is taken for one of images that are broken."""
    if not files:
        raise LayoutError(f"{root}: the lists name no image")
    if not (root / files[0].path).exists():
        raise LayoutError(f"{root}: {files[0].path}, the first of the list, is not there")
