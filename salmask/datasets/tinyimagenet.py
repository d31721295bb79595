"""Tiny-ImageNet-200."""

from pathlib import Path

from salmask.datasets import Dataset, ListedFile, Listing
from salmask.datasets.folders import (
    LayoutError,
    images_below,
    read_text,
    require_folder,
    select_folder,
)


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """Tiny-ImageNet: 100,000 training and 10,000 validation images. Its test images have no labels
    and are not used.

    Args:
        root: contains wnids.txt, train/WNID/images, val/images and val/val_annotations.txt, or
            tiny-imagenet-200 with these.
    """
    root = select_folder(root, "tiny-imagenet-200")
    classes = sorted(read_text(root / "wnids.txt").split())
    labels = {wordnet_id: label for label, wordnet_id in enumerate(classes)}
    files = []
    for wordnet_id, label in labels.items():
        folder = f"train/{wordnet_id}/images"
        images = images_below(require_folder(root / folder))[0]
        files += [ListedFile(f"{folder}/{path}", label, "train") for path in images]
    require_folder(root / "val" / "images")
    annotations = root / "val" / "val_annotations.txt"
    for number, line in enumerate(read_text(annotations).splitlines(), 1):
        name, _, rest = line.partition("\t")
        wordnet_id = rest.partition("\t")[0]
        if wordnet_id not in labels:
            raise LayoutError(
                f"{annotations}, line {number}: expected a file and a class of wnids.txt, "
                f"got {line!r}"
            )
        files.append(ListedFile(f"val/images/{name}", labels[wordnet_id], "val"))
    return Listing(root.resolve(), tuple(labels), files)


DATASET = Dataset(
    read,
    train_images=100_000,
    layout=(
        "wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, or "
        "tiny-imagenet-200 that contains these"
    ),
    origin="Stanford's course CS231n",
    terms="ImageNet's photographs: non-commercial research",
    note="torchvision cannot download it: download tiny-imagenet-200.zip there and unpack it",
)
