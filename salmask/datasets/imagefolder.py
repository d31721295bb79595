"""Any folder of images."""

from pathlib import Path

from salmask.datasets import Dataset, ListedFile, Listing
from salmask.datasets.folders import EXTENSIONS, class_of, images_below, is_folder
from salmask.datasets.listing import printable_names
from salmask.datasets.random_split import is_held_out
from salmask.errors import UserError

_VALIDATION_FOLDERS = ("val", "valid", "validation", "test")


def read(out: Path, seed: int, *, root: Path, val_share: float = 0.1) -> Listing:
    """A folder of images in one of three layouts.

    - root/train/CLASS/... and root/val/CLASS/... (or valid, validation, test).
    - root/CLASS/... or root/train/CLASS/...: a random part becomes the validation split.
    - Images without class folders: all of them are in the training split.

    Args:
        seed: of the random split.
        root: folder of the images.
        val_share: share of the validation split in the second layout.

    Raises UserError when there is no image.
    """
    train = root / "train" if is_folder(root / "train") else None
    val = next((root / name for name in _VALIDATION_FOLDERS if is_folder(root / name)), None)
    # Folder -> split; "" means that the folder is split at random.
    bases = {train: "train", val: "val"} if train and val else {train or root: ""}
    contents = {base: images_below(base) for base in bases}
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
    return Listing(root.resolve(), printable_names(classes), files, tuple(empty))


DATASET = Dataset(read)
