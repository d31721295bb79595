"""Places-205 in its real layout, with a few images."""

from pathlib import Path

import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, make_texts, read_dataset

LISTS = "trainvalsplit_places205/{}_places205.csv"


def places(root: Path, base: str) -> None:
    make_images(root / base, "a/abbey/1.jpg", "f/field/wild/2.jpg", "a/abbey/3 4.jpg")
    train = "a/abbey/1.jpg 0\nf/field/wild/2.jpg 1\n"
    make_texts(root, **{LISTS.format("train"): train, LISTS.format("val"): "a/abbey/3 4.jpg 0\n"})


@pytest.mark.parametrize("base", ["data/vision/torralba/deeplearning/images256", "images256", ""])
def test_places205_by_its_lists(tmp_path, base):
    places(tmp_path / "root", base)
    listing = read_dataset(tmp_path, "places205")
    assert listing.classes == ("a/abbey", "f/field/wild")
    at = base and f"{base}/"
    assert files_by_split(listing) == {
        "train": [(f"{at}a/abbey/1.jpg", "a/abbey"), (f"{at}f/field/wild/2.jpg", "f/field/wild")],
        "val": [(f"{at}a/abbey/3 4.jpg", "a/abbey")],
    }


@pytest.mark.parametrize(
    ("split", "text", "message"),
    [
        ("train", None, r"train_places205\.csv cannot be read: no such.*Places365, a different"),
        ("val", None, r"val_places205\.csv cannot be read: no such file"),
        (
            "val",
            "a/abbey/1.jpg 0\na/abbey/1.jpg,0\n",
            r"val_places205\.csv, line 2: expected a path and a nu",
        ),
        (
            "train",
            "a/abbey/9.jpg 0\n",
            r"a/abbey/9\.jpg, the first file of the list, is neither",
        ),
        ("train", "a/abbey/1.jpg 7\n", r"must be numbered 0, 1, 2, \.\.\., got \[0, 7\]"),
    ],
)
def test_another_layout_is_an_error(tmp_path, split, text, message):
    places(tmp_path / "root", "images256")
    path = tmp_path / "root" / LISTS.format(split)
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "places205")
