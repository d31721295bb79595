"""ImageNet-100: the 100 classes of Tian et al. 2020 (CMC), which Chin et al. 2024 use as well."""

import json
from pathlib import Path

from salmask.datasets import Dataset, Listing
from salmask.datasets.wordnet import LAYOUT, ORIGIN, TERMS, read_classes

_CLASSES = Path(__file__).with_name("imagenet100.json")


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """ImageNet-100 in a folder of ImageNet-1K, or in a folder with these classes only.

    Args:
        root: see `wordnet.LAYOUT`.
    """
    return read_classes(root, json.loads(_CLASSES.read_text(encoding="utf-8")))


DATASET = Dataset(
    read,
    train_images=126_689,
    layout=f"a folder of ImageNet-1K, or one with the 100 classes only: {LAYOUT}",
    origin=ORIGIN,
    terms=TERMS,
    note="download ImageNet there with an account and unpack it",
)
