"""STL-10."""

from pathlib import Path

from salmask.datasets import Dataset, Download, ListedFile, Listing
from salmask.datasets.binary_archives import open_archive, write_images
from salmask.datasets.folders import read_text


def read(out: Path, seed: int, *, root: Path, unlabelled: bool = False) -> Listing:
    """STL-10: 5,000 images of `train` and 8,000 of `val`, written to out/images.

    Args:
        out: folder to write into.
        root: contains stl10_binary.
        unlabelled: whether `train` also contains the 100,000 images without labels.
    """
    parts = {"train": "train", "unlabeled": "train", "test": "val"}
    if not unlabelled:
        del parts["unlabeled"]
    files: list[ListedFile] = []
    for part, split in parts.items():
        data = open_archive("STL10", root, split=part)
        files += write_images(data, data.labels.tolist(), split, out / "images", part)
    classes = read_text(root / data.base_folder / data.class_names_file).split()
    return Listing(out / "images", tuple(classes), files)


DATASET = Dataset(
    read,
    train_images=105_000,
    layout="stl10_binary, its binary files",
    origin="Stanford",
    terms="ImageNet's photographs: research",
    downloads={"stl10": Download("STL10", ("stl10_binary",), 2.7)},
)
