"""CIFAR-100."""

from pathlib import Path

from salmask.datasets import Dataset, Download, Listing
from salmask.datasets.binary_archives import read_cifar


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """CIFAR-100: 50,000 images of `train` and 10,000 of `val`, written to out/images.

    Args:
        out: folder to write into.
        root: contains cifar-100-python, the Python version of the data set.
    """
    return read_cifar("CIFAR100", out, root)


DATASET = Dataset(
    read,
    train_images=50_000,
    layout="cifar-100-python, its Python version",
    origin="University of Toronto",
    terms="none stated",
    downloads={"cifar100": Download("CIFAR100", ("cifar-100-python",), 0.2)},
)
