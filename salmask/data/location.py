"""Where the images of a prepared data set are: `location.json`, beside the list of the images.

No later stage depends on this file, so that moved images cost one run of `prepare` only.
"""

import json
import os
from pathlib import Path

from salmask.data.file_bytes import missing_folder
from salmask.errors import UserError
from salmask.files import write_json

_FILE = "location.json"


def save(images: Path, folder: Path, project: Path) -> None:
    """Writes the location of the images to a folder.

    Args:
        images: absolute path of the folder of the images.
        folder: absolute path of the folder with the list of the images.
        project: absolute path of the project. Images inside it are found again when the project
            is moved.
    """
    inside = images.is_relative_to(folder) or images.is_relative_to(project)
    location = os.path.relpath(images, folder) if inside else str(images)
    write_json(folder / _FILE, {"images": Path(location).as_posix()})


def load(folder: Path) -> Path:
    """The folder of the images. Raises UserError if it, or the record of it, is missing."""
    try:
        images = folder / json.loads((folder / _FILE).read_text(encoding="utf-8"))["images"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / _FILE} is missing or damaged: run `dvc repro`") from None
    images = Path(os.path.normpath(images))
    if message := missing_folder(images):  # otherwise all images would be replaced by gray ones
        raise UserError(f"{message}, or run `dvc repro`")
    return images
