"""Small folders laid out as data sets are, and what a source finds in them."""

from pathlib import Path

from PIL import Image

from salmask.data.prepare import Listing
from salmask.datasets.registry import configured
from salmask.params.values import Choice


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / name)


def texts(root: Path, **files: str) -> None:
    """Text files; __ in a name stands for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def listing(tmp_path: Path, name: str, seed: int = 0, **options: object) -> Listing:
    """What the source `name` finds in tmp_path/root."""
    choice = Choice(name, {"root": str(tmp_path / "root")} | options)
    return configured(choice, "transfer.x")[1](tmp_path / "out", seed)


def by_split(found: Listing) -> dict[str, list[tuple[str, str]]]:
    """(path, class) of every file, in order; "" for no class."""
    made: dict[str, list[tuple[str, str]]] = {}
    for file in found.files:
        kind = found.classes[file.label] if file.label >= 0 else ""
        made.setdefault(file.split, []).append((file.path, kind))
    return made
