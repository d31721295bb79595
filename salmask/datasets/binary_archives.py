"""Data sets of small images in binary files that torchvision reads; they are written as PNG files.

Their test images become the split `val`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from salmask.datasets import ListedFile, Listing
from salmask.datasets.folders import LayoutError, is_folder


def read_cifar(name: str, out: Path, root: Path) -> Listing:
    """CIFAR-10 or CIFAR-100: 50,000 images of `train` and 10,000 of `val`.

    Args:
        name: of torchvision's class.
        out: the images are written to out/images.
        root: contains torchvision's folder.
    """
    files: list[ListedFile] = []
    for split in ("train", "val"):
        data = open_archive(name, root, train=split == "train")
        files += write_images(data, data.targets, split, out / "images", split)
    return Listing(out / "images", tuple(data.classes), files)


def open_archive(name: str, root: Path, **options: Any) -> Any:
    """torchvision's data set `name`, after its check of every file's md5. Raises LayoutError."""
    from torchvision import datasets  # torchvision takes seconds to import

    dataset_class = getattr(datasets, name)
    folder = root / dataset_class.base_folder
    if not is_folder(folder):
        raise LayoutError(f"{root}: it does not contain the folder {dataset_class.base_folder}")
    try:
        return dataset_class(root=str(root), download=False, **options)
    except RuntimeError:
        raise LayoutError(
            f"{folder}: a file is missing or has a wrong md5; delete it and download it again"
        ) from None


def write_images(
    data: Any, labels: Sequence[int], split: str, folder: Path, part: str
) -> Iterator[ListedFile]:
    """Writes the images of a torchvision data set to folder/part/00000.png and so on."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(labels):
        name = f"{part}/{index:05d}.png"
        data[index][0].save(folder / name)
        yield ListedFile(name, int(label), split)
