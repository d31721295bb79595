"""PASCAL VOC's images, without labels."""

import re
from pathlib import Path
from typing import Literal

from salmask.datasets import Dataset, Download, ListedFile, Listing
from salmask.datasets.folders import (
    EXTENSIONS,
    images_below,
    read_text,
    require_first_file,
    require_folder,
    require_inside,
    select_folder,
)


def read(
    out: Path, seed: int, *, root: Path, years: tuple[Literal[2007, 2012], ...] = (2007, 2012)
) -> Listing:
    """PASCAL VOC without labels, since an image shows objects of several classes.

    `trainval` is the training split; `test`, if a year has it (2007), the validation split.

    Args:
        root: contains VOC2007 and VOC2012, or VOCdevkit with these.
        years: the years to read.
    """
    root = select_folder(root, "VOCdevkit")
    files = []
    for year in years:
        require_folder(root / f"VOC{year}" / "JPEGImages")
        lists = root / f"VOC{year}" / "ImageSets" / "Main"
        parts = {"trainval": "train"} | ({"test": "val"} if (lists / "test.txt").exists() else {})
        for part, split in parts.items():
            images = listed_images(root / f"VOC{year}", part).values()
            files += [ListedFile(f"VOC{year}/JPEGImages/{path}", -1, split) for path in images]
    require_first_file(root, files)
    return Listing(root.resolve(), (), files)


def listed_images(folder: Path, part: str) -> dict[str, str]:
    """The images of a list in ImageSets/Main: name -> path below JPEGImages.

    A name may contain spaces, and its image may have any extension that is read elsewhere. Lists of
    single classes have a second column, which is ignored. A name without an image has the path that
    it would have in VOC. Raises LayoutError, and UserError for a path that leads out of the folder.

    Args:
        folder: such as VOC2007.
        part: name of the list without `.txt`.
    """
    paths: dict[str, str] = {}  # without extension -> with it; of several, the first one
    for path in images_below(require_folder(folder / "JPEGImages"))[0]:
        paths.setdefault(path.rpartition(".")[0], path)
    file = folder / "ImageSets" / "Main" / f"{part}.txt"
    images = {}
    for number, line in enumerate(read_text(file).split("\n"), 1):
        line = line.strip(' \t\r\0"')
        if not line:
            continue
        require_inside(folder, line, f"{file}, line {number}")
        whole, name = (_without_suffix(text) for text in (line, _FLAG.sub("", line)))
        name = whole if whole in paths else name  # a name may end like the second column
        images[name] = paths.get(name, f"{name}.jpg")
    return images


def _without_suffix(text: str) -> str:
    """The name of an image, of which some lists give the file."""
    name = text.strip().replace("\\", "/").removeprefix("./").removeprefix("JPEGImages/")
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix.lower()}" in (*EXTENSIONS, ".xml") else name


_FLAG = re.compile(r"\s+(-1|0|1)$")  # the second column of a list of one class
_PARTS_2007 = [{"year": "2007", "image_set": part} for part in ("trainval", "test")]
_PARTS_2012 = [{"year": "2012", "image_set": "trainval"}]

DATASET = Dataset(
    read,
    layout=(
        "VOC2007 and VOC2012 with JPEGImages/ and ImageSets/Main/*.txt, or VOCdevkit that contains "
        "these"
    ),
    origin="the PASCAL VOC challenges, Oxford",
    terms="Flickr's terms",
    downloads={
        "voc2007": Download("VOCDetection", ("VOCdevkit/VOC2007",), 1, _PARTS_2007),
        "voc2012": Download("VOCDetection", ("VOCdevkit/VOC2012",), 2, _PARTS_2012),
    },
)
