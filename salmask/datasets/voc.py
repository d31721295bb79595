"""PASCAL VOC's images, without labels."""

from pathlib import Path
from typing import Literal

from salmask.datasets import Dataset, Download, ListedFile, Listing
from salmask.datasets.folders import read_text, require_first_file, require_folder, select_folder


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
            names = read_text(lists / f"{part}.txt").split()
            files += [ListedFile(f"VOC{year}/JPEGImages/{name}.jpg", -1, split) for name in names]
    require_first_file(root, files)
    return Listing(root.resolve(), (), files)


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
