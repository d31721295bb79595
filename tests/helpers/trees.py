"""Small folders in the layouts of data sets, and their listings."""

from pathlib import Path

from PIL import Image

from salmask.datasets import Listing
from salmask.datasets.reader import dataset_reader
from salmask.params.values import Choice


def make_images(root: Path, *names: str) -> None:
    """Writes black images of 9x9 px."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / name)


def make_texts(root: Path, **files: str) -> None:
    """Writes text files; `__` in a name becomes a dot."""
    for name, text in files.items():
        path = root / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read_dataset(tmp_path: Path, name: str, seed: int = 0, **options: object) -> Listing:
    """The listing of the data set `name` in tmp_path/root."""
    choice = Choice(name, {"root": str(tmp_path / "root")} | options)
    return dataset_reader(choice, "transfer.x")[1](tmp_path / "out", seed)


def files_by_split(listing: Listing) -> dict[str, list[tuple[str, str]]]:
    """Split -> (path, class) of every file, in order; "" for no class."""
    splits: dict[str, list[tuple[str, str]]] = {}
    for file in listing.files:
        name = listing.classes[file.label] if file.label >= 0 else ""
        splits.setdefault(file.split, []).append((file.path, name))
    return splits
