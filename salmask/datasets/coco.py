"""COCO 2017's images, without labels."""

from pathlib import Path

from salmask.datasets import Dataset, ListedFile, Listing
from salmask.datasets.folders import images_below, is_folder, require_folder, select_folder


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """COCO 2017 without labels.

    Args:
        root: contains train2017 (the training split) and, optionally, val2017 (the validation
            split), or the folder images with these.
    """
    root = select_folder(root, "images")
    require_folder(root / "train2017")
    folders = {split: f"{split}2017" for split in ("train", "val")}
    files = [
        ListedFile(f"{folder}/{path}", -1, split)
        for split, folder in folders.items()
        if is_folder(root / folder)
        for path in images_below(root / folder)[0]
    ]
    return Listing(root.resolve(), (), files)


DATASET = Dataset(
    read,
    layout=(
        "train2017/*.jpg and, optionally, val2017/*.jpg, or the folder images that contains these"
    ),
    origin="COCO's own site",
    terms="annotations CC BY 4.0; each photograph has its own licence",
    note=(
        "torchvision reads it but cannot download it: download train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip there and unpack them"
    ),
)
