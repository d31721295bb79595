"""iNaturalist 2018 in its real layout, with a few images."""

import json
from pathlib import Path

import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, read_dataset


def inat(root: Path, folder: str = "train_val2018") -> None:
    """iNaturalist 2018's layout; ids of images and categories are not row numbers."""
    files = {1: ("Aves", 11, "a"), 700001: ("Fungi", 2, "b"), 9: ("Fungi", 2, "c")}
    for group, kind, name in files.values():
        make_images(root / folder, f"{group}/{kind}/{name}.jpg")
    categories = [{"id": kind, "name": "x", "supercategory": "y"} for kind in (11, 2, 5)]
    for split, ids in (("train", (1, 700001)), ("val", (9,))):
        paths = {n: f"train_val2018/{files[n][0]}/{files[n][1]}/{files[n][2]}.jpg" for n in ids}
        message = {
            "images": [{"id": n, "file_name": path, "width": 9} for n, path in paths.items()],
            "annotations": [
                {"id": 0, "image_id": n, "category_id": files[n][1]} for n in reversed(ids)
            ],
            "categories": categories,
        }
        (root / f"{split}2018.json").write_text(json.dumps(message))


@pytest.mark.parametrize("folder", ["train_val2018", "2018"])
def test_inat2018_by_its_annotations(tmp_path, folder):
    inat(tmp_path / "root", folder)
    listing = read_dataset(tmp_path, "inat2018")
    assert listing.classes == ("2", "5", "11")
    assert files_by_split(listing) == {
        "train": [(f"{folder}/Aves/11/a.jpg", "11"), (f"{folder}/Fungi/2/b.jpg", "2")],
        "val": [(f"{folder}/Fungi/2/c.jpg", "2")],
    }


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "train_val2018",
            None,
            r"neither a folder train_val2018 nor torchvision's folder 2018\. Expected for inat",
        ),
        ("val2018.json", None, r"val2018\.json cannot be read: no such.*competition's page"),
        ("train2018.json", "{]", r"train2018\.json is not in iNaturalist's format: JSONDecodeErr"),
        ("train2018.json", "[]", "train2018.json is not in iNaturalist's format"),
        ("train2018.json", '{"images": [], "annotations": []}', r"KeyError\('categories'\)"),
        (
            "train2018.json",
            '{"images": [{"id": 3, "file_name": "x"}], "annotations": [], "categories": []}',
            r"KeyError\(3\) is missing",
        ),
        (
            "train_val2018/Aves/11/a.jpg",
            None,
            r"Aves/11/a\.jpg, the first file of the list, does no",
        ),
    ],
)
def test_another_layout_is_an_error(tmp_path, file, text, message):
    inat(tmp_path / "root")
    if text is None:
        (tmp_path / "root" / file).rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "root" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "inat2018")
