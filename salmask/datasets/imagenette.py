"""Imagenette: ten classes of ImageNet."""

from pathlib import Path

from salmask.datasets import Dataset, Download, Listing
from salmask.datasets.folders import LayoutError, select_folder
from salmask.datasets.wordnet import class_folders, read_classes

_FOLDERS = ("imagenette2", "imagenette2-320", "imagenette2-160")


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """Imagenette. Its list of noisy labels is not read.

    Args:
        root: contains train/CLASS/... and val/CLASS/..., or one of `_FOLDERS` with these. The
            class folders may have any names.
    """
    root = select_folder(root, *_FOLDERS)
    classes = class_folders(root / "train")
    if len(classes) != 10:
        raise LayoutError(f"{root / 'train'} contains {len(classes)} class folders instead of 10")
    return read_classes(root, classes)


DATASET = Dataset(
    read,
    train_images=9_469,
    layout=(
        "train/CLASS/*.JPEG and val/CLASS/*.JPEG, ten classes, or imagenette2, imagenette2-320 or "
        "imagenette2-160 that contains these"
    ),
    origin="fast.ai",
    terms="ImageNet's photographs: non-commercial research",
    downloads={
        "imagenette": Download("Imagenette", ("imagenette2",), 1.6, [{"size": "full"}]),
        "imagenette-320": Download("Imagenette", ("imagenette2-320",), 0.35, [{"size": "320px"}]),
        "imagenette-160": Download("Imagenette", ("imagenette2-160",), 0.1, [{"size": "160px"}]),
    },
)
