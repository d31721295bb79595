"""A folder of images whose splits are given by folders or by lists."""

from pathlib import Path

from salmask.datasets import Dataset, Listing
from salmask.datasets.folders import class_of, images_below, is_folder
from salmask.datasets.listing import listing_by_class
from salmask.errors import UserError


def read(
    out: Path,
    seed: int,
    *,
    root: Path,
    train: str = "train",
    val: str | None = None,
    test: str = "test",
) -> Listing:
    """A folder of images with given splits.

    Each split is a folder in `root` that contains CLASS/..., or a text file in `root` with one path
    CLASS/... per line. The extension `.txt` may be omitted.

    Args:
        root: folder of the images.
        train: folder or list of the training split.
        val: folder or list of the validation split; null for `val` if it exists.
        test: folder or list of the test split.

    Raises UserError when a split is missing, or when two splits contain the same file.
    """
    names = {"train": train, "val": val or "val", "test": test}
    splits: dict[str, str] = {}
    for split, name in names.items():
        paths = _paths(root, name)
        if paths is None and (split != "val" or val is not None):
            raise UserError(f"{root}: neither a folder {name} nor a list {name} or {name}.txt")
        for path in paths or []:
            if splits.setdefault(path, split) != split:
                raise UserError(f"{root}: {path} is in {splits[path]} and in {split}")
    # The class is the first folder of a path in a list, but the second one below a split's folder.
    class_names = {
        path: class_of(path.removeprefix(f"{names[s]}/") if is_folder(root / names[s]) else path)
        for path, s in splits.items()
    }
    return listing_by_class(root, class_names, splits)


def _paths(root: Path, name: str) -> list[str] | None:
    """The images of a split, relative to `root`; None when there is no such folder or list."""
    if is_folder(root / name):
        return [f"{name}/{path}" for path in images_below(root / name)[0]]
    lists = [root / name, root / f"{name}.txt"]
    file = next((path for path in lists if path.is_file()), None)
    if file is None:
        return None
    lines = [line.strip() for line in file.read_text(errors="surrogateescape").splitlines()]
    return [line for line in lines if line]


DATASET = Dataset(read)
