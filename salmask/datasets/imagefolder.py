"""Any folder of images."""

from pathlib import Path

from salmask.datasets import Dataset, ListedFile, Listing
from salmask.datasets.folders import (
    EXTENSIONS,
    class_of,
    images_below,
    is_folder,
    is_ignored,
    note_on_unread,
)
from salmask.datasets.listing import printable_names, shorten
from salmask.datasets.random_split import is_held_out
from salmask.errors import UserError
from salmask.params.ranges import Share

_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "dev")
_TEST = ("test", "testing")


def read(out: Path, seed: int, *, root: Path, val_share: Share = 0.1) -> Listing:
    """A folder of images in one of three layouts.

    - root/train/CLASS/... and root/val/CLASS/... (or valid, validation, dev, test). With both a
      validation and a test folder, the images of the latter are in the split `test`. Upper and
      lower case do not matter, and `training` and `testing` are accepted as well.
    - root/CLASS/... or root/train/CLASS/...: a random part becomes the validation split.
    - Images without class folders: all of them are in the training split.

    Args:
        seed: of the random split.
        root: folder of the images.
        val_share: share of the validation split in the second layout.

    Raises UserError when there is no image, or when it is not clear which folders are splits.
    """
    bases = _split_folders(root)
    unread: list[str] = []
    contents = {base: images_below(base, unread) for base in bases}
    classes = sorted({class_of(path) for images, _ in contents.values() for path in images} - {""})
    labels = {name: label for label, name in enumerate(classes)} | {"": -1}
    files, empty = [], []
    for base, split in bases.items():
        images, folders = contents[base]
        prefix = "" if base == root else f"{base.name}/"
        for path in images:
            name = class_of(path)
            held_out = name and is_held_out(path, seed, val_share)
            file_split = split or ("val" if held_out else "train")
            files.append(ListedFile(prefix + path, labels[name], file_split))
        not_empty = {path.partition("/")[0] for path in images}
        empty += [prefix + folder for folder in folders if folder not in not_empty]
    if not files:
        raise UserError(f"data.root: no images under {root} (extensions: {', '.join(EXTENSIONS)})")
    notes = note_on_unread(unread)
    if root not in bases and (beside := _images_beside(root, bases)):
        names = shorten([f"{name} ({count} images)" for name, count in beside.items()])
        if len(bases) == 1:
            raise UserError(
                f"data.root: {root} contains {next(iter(bases)).name}, which looks like a split, "
                f"and {names} beside it. For a split, move the others away or rename them to val "
                "and test; for a class, rename it"
            )
        notes.append(f"beside the folders of the splits, not read: {names}")
    return Listing(root.resolve(), printable_names(classes), files, tuple(empty), tuple(notes))


def _split_folders(root: Path) -> dict[Path, str]:
    """Folder -> split; "" means that the folder is split at random. Raises UserError."""
    try:
        names = sorted(p.name for p in root.iterdir() if is_folder(p))
    except OSError:
        return {root: ""}  # reading it reports the reason

    def folder(kinds: tuple[str, ...]) -> Path | None:
        matches = [name for name in names if name.lower() in kinds]
        if len(matches) > 1:
            raise UserError(
                f"data.root: {root} contains {' and '.join(matches)}: it is not clear which one is "
                "the split; join them, or name them with `name: splits`"
            )
        return root / matches[0] if matches else None

    train = folder(_TRAIN)
    if train is None:
        return {root: ""}
    val, test = folder(_VAL), folder(_TEST)
    if val is None and test is None:
        return {train: ""}
    splits = {train: "train", val or test: "val"} | ({test: "test"} if val and test else {})
    return {path: split for path, split in splits.items() if path is not None}


def _images_beside(root: Path, bases: dict[Path, str]) -> dict[str, int]:
    """The number of images of each folder beside the splits that has any, and of `root`."""
    counts = {".": sum(p.suffix.lower() in EXTENSIONS and p.is_file() for p in root.iterdir())}
    for path in sorted(root.iterdir()):
        if path not in bases and is_folder(path) and not is_ignored(path.name):
            counts[path.name] = len(images_below(path)[0])
    return {name: count for name, count in counts.items() if count}


DATASET = Dataset(read)
