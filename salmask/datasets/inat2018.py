"""iNaturalist 2018."""

import json
from pathlib import Path

from salmask.datasets import Dataset, Download, ListedFile, Listing
from salmask.datasets.folders import LayoutError, is_folder, read_text, require_first_file


def read(out: Path, seed: int, *, root: Path) -> Listing:
    """iNaturalist 2018: 437,513 training and 24,426 validation images of 8,142 categories.

    Class names are the numbers of the categories.

    Args:
        root: contains train2018.json, val2018.json, and the images in train_val2018 (which
            torchvision calls 2018).
    """
    folders = [name for name in ("train_val2018", "2018") if is_folder(root / name)]
    if not folders:
        raise LayoutError(f"{root}: neither a folder train_val2018 nor torchvision's folder 2018")
    files: list[ListedFile] = []
    classes: list[int] = []
    for split in ("train", "val"):
        annotations = root / f"{split}2018.json"
        try:
            content = json.loads(read_text(annotations))
            categories = {row["image_id"]: row["category_id"] for row in content["annotations"]}
            classes = classes or sorted(category["id"] for category in content["categories"])
            labels = {category: label for label, category in enumerate(classes)}
            for image in content["images"]:
                path = f"{folders[0]}/{image['file_name'].removeprefix('train_val2018/')}"
                files.append(ListedFile(path, labels[categories[image["id"]]], split))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LayoutError(
                f"{annotations} is not in iNaturalist's format: {error!r} is missing or invalid"
            ) from None
    require_first_file(root, files)
    return Listing(root.resolve(), tuple(map(str, classes)), files)


DATASET = Dataset(
    read,
    layout=(
        "train_val2018/GROUP/CATEGORY/*.jpg (or torchvision's 2018/...), train2018.json and "
        "val2018.json"
    ),
    origin="iNaturalist's competition of 2018",
    terms="non-commercial research; each photograph has its own licence",
    note="download the annotations train2018.json and val2018.json from the competition's page",
    downloads={"inat2018": Download("INaturalist", ("2018",), 120, [{"version": "2018"}])},
)
