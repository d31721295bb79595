"""Caltech-101."""

from pathlib import Path

from salmask.datasets import Dataset, Download, Listing
from salmask.datasets.folders import LayoutError, class_of, images_below, select_folder
from salmask.datasets.listing import listing_by_class
from salmask.datasets.random_split import path_hash
from salmask.errors import UserError
from salmask.params.ranges import NonNegativeInt, PositiveInt

_IMAGES = "101_ObjectCategories"
_NO_CLASS = "BACKGROUND_Google"


def read(
    out: Path, seed: int, *, root: Path, train: PositiveInt = 25, val: NonNegativeInt = 5
) -> Listing:
    """Caltech-101 with random splits of each class; its background images are not used.

    Args:
        seed: of the splits.
        root: contains CLASS/..., or the folder 101_ObjectCategories where torchvision or the
            archive puts it.
        train: training images per class.
        val: validation images per class. The remaining images are for testing.

    Raises UserError when a class has too few images.
    """
    root = select_folder(root, _IMAGES, f"caltech-101/{_IMAGES}", f"caltech101/{_IMAGES}")
    class_names = {
        path: class_of(path)
        for path in images_below(root)[0]
        if class_of(path) not in ("", _NO_CLASS)
    }
    classes = sorted(set(class_names.values()))
    if len(classes) < 2:
        raise LayoutError(f"{root}: class folders with images: {', '.join(classes) or 'none'}")
    splits = {}
    for name in classes:
        paths = [path for path in class_names if class_names[path] == name]
        if len(paths) <= train + val:
            raise UserError(
                f"{root}: class {name} has {len(paths)} images; after {train} for training and "
                f"{val} for validation there are none for testing"
            )
        for rank, path in enumerate(sorted(paths, key=lambda path: path_hash(seed, path))):
            splits[path] = "train" if rank < train else "val" if rank < train + val else "test"
    return listing_by_class(root, class_names, dict(sorted(splits.items())))


DATASET = Dataset(
    read,
    layout=(
        "CLASS/*.jpg, or one of 101_ObjectCategories, caltech-101/101_ObjectCategories and "
        "caltech101/101_ObjectCategories that contains these"
    ),
    origin="Caltech",
    terms="CC BY 4.0",
    downloads={"caltech101": Download("Caltech101", ("caltech101/101_ObjectCategories",), 0.2)},
)
