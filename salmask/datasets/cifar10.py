"""CIFAR-10."""

from pathlib import Path

from salmask.datasets import Dataset, Download, Listing
from salmask.datasets.binary_archives import read_cifar


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """CIFAR-10: 50,000 images of `train` and 10,000 of `val`, written to out/images.

    Args:
        out: folder to write into.
        root: contains cifar-10-batches-py, the Python version of the data set.
    """
    return read_cifar("CIFAR10", out, root)


DATASET = Dataset(
    read,
    train_images=50_000,
    layout="cifar-10-batches-py, its Python version",
    origin="University of Toronto",
    terms="none stated",
    downloads={"cifar10": Download("CIFAR10", ("cifar-10-batches-py",), 0.2)},
)
