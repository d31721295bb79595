"""Where the images of a prepared data set are: `location.json`, beside the list of the images. It
also names the folder of their pack, if there is one.

No later stage depends on this file, so that moved images cost one run of `prepare` only.
"""

import os
from pathlib import Path

from salmask.data.file_bytes import missing_folder
from salmask.errors import UserError
from salmask.files import write_json
from salmask.stored_files import damage_reported, read_json

_FILE = "location.json"


def save(images: Path, folder: Path, project: Path, pack: Path | None = None) -> None:
    """Writes the location of the images to a folder.

    Args:
        images: absolute path of the folder of the images.
        folder: absolute path of the folder with the list of the images.
        project: absolute path of the project. Folders inside it are found again when the project
            is moved.
        pack: absolute path of the pack of the images, if there is one.
    """

    def text(path: Path) -> str:
        inside = path.is_relative_to(folder) or path.is_relative_to(project)
        return Path(os.path.relpath(path, folder) if inside else path).as_posix()

    folders = {"images": images} | ({"pack": pack} if pack else {})
    write_json(folder / _FILE, {name: text(path) for name, path in folders.items()})


def load(folder: Path, check: bool = True) -> Path:
    """The folder of the images. Raises UserError if the record of it is missing, and if the folder
    itself is missing and `check` is True."""
    images = _read(folder)["images"]
    # Otherwise all images would be replaced by gray ones.
    if check and (message := missing_folder(images)):
        raise UserError(f"{message}, or run `dvc repro`")
    return images


def load_pack(folder: Path) -> Path | None:
    """The folder of the pack of the images, if one was written; it may be missing."""
    return _read(folder).get("pack")


def _read(folder: Path) -> dict[str, Path]:
    try:
        stored = read_json(folder / _FILE)
    except FileNotFoundError:
        raise UserError(f"{folder / _FILE} is missing: run `dvc repro`") from None
    with damage_reported(folder / _FILE):
        names = [name for name in ("images", "pack") if name == "images" or name in stored]
        return {name: Path(os.path.normpath(folder / stored[name])) for name in names}
