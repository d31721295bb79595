"""Sets of small images in binary files, which torchvision reads: out of them come PNG files.

Their test images make the split `val`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from salmask.data.prepare import Found, Listing
from salmask.datasets.folders import is_folder
from salmask.datasets.layout import LayoutError, text


def cifar10(out: Path, seed: int, *, root: Path) -> Listing:
    """CIFAR-10 from root/cifar-10-batches-py, its python version: 50,000 images of train and 10,000
    of val."""
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, out, root)


def cifar100(out: Path, seed: int, *, root: Path) -> Listing:
    """CIFAR-100 from root/cifar-100-python, likewise."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, out, root)


def stl10(out: Path, seed: int, *, root: Path, unlabelled: bool = False) -> Listing:
    """STL-10 from root/stl10_binary: 5,000 images of train and 8,000 of val.

    unlabelled: its 100,000 images without labels are of train too.
    """
    from torchvision.datasets import STL10

    parts = {"train": "train", "unlabeled": "train", "test": "val"}
    if not unlabelled:
        del parts["unlabeled"]
    files: list[Found] = []
    for part, split in parts.items():
        data = _read(STL10, root, split=part)
        files += _written(data, data.labels.tolist(), split, out / "images", part)
    classes = text(root / STL10.base_folder / STL10.class_names_file).split()
    return Listing(out / "images", tuple(classes), files)


def _cifar(kind: Any, out: Path, root: Path) -> Listing:
    files: list[Found] = []
    for split in ("train", "val"):
        data = _read(kind, root, train=split == "train")
        files += _written(data, data.targets, split, out / "images", split)
    return Listing(out / "images", tuple(data.classes), files)


def _read(kind: Any, root: Path, **part: Any) -> Any:
    """torchvision's data set, which checks every file's md5 first."""
    if not is_folder(root / kind.base_folder):
        raise LayoutError(f"{root}: no folder {kind.base_folder} in it")
    try:
        return kind(root=str(root), download=False, **part)
    except RuntimeError:
        raise LayoutError(
            f"{root / kind.base_folder}: a file is missing, or is not the one that its md5 says; "
            "remove the folder to get it anew"
        ) from None


def _written(
    data: Any, labels: Sequence[int], split: str, folder: Path, part: str
) -> Iterator[Found]:
    """Writes the images to folder/part/00000.png and so on."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(labels):
        name = f"{part}/{index:05d}.png"
        data[index][0].save(folder / name)
        yield Found(name, int(label), split)
