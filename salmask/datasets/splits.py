"""A folder of images whose splits are given by folders or by lists."""

from dataclasses import replace
from pathlib import Path

from salmask.datasets import Dataset, Listing
from salmask.datasets.folders import (
    class_of,
    images_below,
    is_file,
    is_folder,
    note_on_unread,
    read_text,
    require_inside,
)
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
    CLASS/... per line. The extension `.txt` may be omitted. Lists may be UTF-16 or have a byte
    order mark. Their paths may start with `./` or `root`, be quoted, contain backslashes, or be
    the first of several columns.

    Args:
        root: folder of the images.
        train: folder or list of the training split.
        val: folder or list of the validation split; null for `val` if it exists.
        test: folder or list of the test split.

    Raises UserError when a split is missing, when two splits contain the same file, or when a path
    leads out of `root`.
    """
    names = {"train": train, "val": val or "val", "test": test}
    splits: dict[str, str] = {}
    unread: list[str] = []
    for split, name in names.items():
        require_inside(root, name, split)
        paths = _paths(root, name, unread)
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
    listing = listing_by_class(root, class_names, splits)
    return replace(listing, notes=tuple(note_on_unread(unread)))


def _paths(root: Path, name: str, unread: list[str]) -> list[str] | None:
    """The images of a split, relative to `root`; None when there is no such folder or list."""
    if is_folder(root / name):
        return [f"{name}/{path}" for path in images_below(root / name, unread)[0]]
    lists = [root / name, root / f"{name}.txt"]
    file = next((path for path in lists if path.is_file()), None)
    if file is None:
        return None
    lines = enumerate(read_text(file).split("\n"), start=1)
    return [_path(root, line, f"{file}, line {n}") for n, line in lines if line.strip(" \t\r\0")]


def _path(root: Path, line: str, where: str) -> str:
    """The path in a line of a list, relative to `root`.

    Of several readings of the line, this is the first one for which there is a file. Otherwise it
    is the line itself, and `prepare` rejects the file as missing. Raises UserError for a path
    outside of `root`.
    """
    line = line.strip(" \t\r\0")
    columns = [line, *(line.partition(mark)[0] for mark in ",;\t" if mark in line)]
    plain = [column.strip().strip("\"'") for column in columns]
    readings = [_below(root, text) for text in (*plain, *(t.replace("\\", "/") for t in plain))]
    path = next((p for p in readings if is_file(root / p)), readings[0])
    return require_inside(root, path, where)


def _below(root: Path, text: str) -> str:
    for base in (f"{root}/", f"{root.resolve()}/"):
        text = text.removeprefix(base)
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return text


DATASET = Dataset(read)
