"""Places-205."""

from collections.abc import Iterator
from pathlib import Path

from salmask.datasets import Dataset, ListedFile, Listing
from salmask.datasets.folders import LayoutError, read_text

_FOLDERS = ("data/vision/torralba/deeplearning/images256", "images256", ".")


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """Places-205 by its lists. A class has the name of the folder of its first image.

    Args:
        root: contains trainvalsplit_places205/{train,val}_places205.csv with a path and a class
            number per line, and the images in one of `_FOLDERS`.
    """
    files: list[ListedFile] = []
    names: dict[int, str] = {}
    prefix = ""
    for split in ("train", "val"):
        csv_file = root / "trainvalsplit_places205" / f"{split}_places205.csv"
        for path, label in _rows(csv_file):
            if not files:
                prefix = _prefix(root, path)
            names.setdefault(label, path.rpartition("/")[0])
            files.append(ListedFile(prefix + path, label, split))
    if sorted(names) != list(range(len(names))):
        raise LayoutError(
            f"{root}: classes must be numbered 0, 1, 2, ..., got {sorted(names)[:9]}..."
        )
    return Listing(root.resolve(), tuple(names[label] for label in sorted(names)), files)


def _rows(csv_file: Path) -> Iterator[tuple[str, int]]:
    """Path and class number of every line."""
    for number, line in enumerate(read_text(csv_file).splitlines(), 1):
        path, _, label = line.rstrip().rpartition(" ")
        if not path or not label.isdecimal():
            raise LayoutError(
                f"{csv_file}, line {number}: expected a path and a number, got {line[:99]!r}"
            )
        yield path, int(label)


def _prefix(root: Path, path: str) -> str:
    """The folder of `_FOLDERS` that contains the image `path`, as a prefix of paths."""
    for folder in _FOLDERS:
        if (root / folder / path).exists():
            return "" if folder == "." else f"{folder}/"
    raise LayoutError(
        f"{root}: {path}, the first file of the list, is neither here nor in "
        f"{', '.join(_FOLDERS[:-1])}"
    )


DATASET = Dataset(
    read,
    layout=(
        "trainvalsplit_places205/{train,val}_places205.csv, and the images below "
        "data/vision/torralba/deeplearning/images256, images256 or the folder itself"
    ),
    origin="MIT's Places project",
    terms="non-commercial research and education",
    note=(
        "torchvision only has Places365, a different data set: download the images of 256 px and "
        "the lists of Places-205 there"
    ),
)
