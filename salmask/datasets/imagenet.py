"""ImageNet-1K (ILSVRC 2012)."""

from pathlib import Path

from pydantic import PositiveInt

from salmask.datasets import Dataset, Listing
from salmask.datasets.wordnet import LAYOUT, ORIGIN, TERMS, read_classes, wordnet_folders


def read(out: Path, seed: int, *, root: Path, classes: PositiveInt = 1000) -> Listing:
    """ImageNet-1K as root/train/WNID/... and root/val/WNID/...

    Args:
        root: see `LAYOUT`.
        classes: number of classes that train must contain. An incomplete data set is an error.
    """
    return read_classes(root, wordnet_folders(root, classes))


DATASET = Dataset(
    read,
    train_images=1_281_167,
    layout=LAYOUT,
    origin=ORIGIN,
    terms=TERMS,
    note="download the archives there with an account and unpack them",
)
