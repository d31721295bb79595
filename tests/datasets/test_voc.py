"""PASCAL VOC in its real layout, with a few images."""

from pathlib import Path

import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, make_texts, read_dataset


def pascal(root: Path) -> None:
    for year, part, name in ((2007, "trainval", "000005"), (2007, "test", "000001"),
                             (2012, "trainval", "2008_000002")):  # fmt: skip
        make_images(root / f"VOC{year}/JPEGImages", f"{name}.jpg")
        make_texts(root / f"VOC{year}/ImageSets/Main", **{f"{part}__txt": f"{name}\n"})


@pytest.mark.parametrize("place", [".", "VOCdevkit"])
def test_voc_without_labels(tmp_path, place):
    pascal(tmp_path / "root" / place)
    listing = read_dataset(tmp_path, "voc")
    assert listing.classes == ()
    assert files_by_split(listing) == {
        "train": [
            ("VOC2007/JPEGImages/000005.jpg", ""),
            ("VOC2012/JPEGImages/2008_000002.jpg", ""),
        ],
        "val": [("VOC2007/JPEGImages/000001.jpg", "")],
    }
    assert {file.path[:7] for file in read_dataset(tmp_path, "voc", years=[2012]).files} == {
        "VOC2012"
    }


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            "VOC2012",
            r"VOC2012/JPEGImages does not exist\. Expected for voc.*fetch voc2007 .*fetch voc2012 ",
        ),
        ("VOC2012/ImageSets/Main/trainval.txt", r"trainval\.txt cannot be read: no such file"),
        ("VOC2007/JPEGImages/000005.jpg", r"000005\.jpg, the first file of the list, does not"),
    ],
)
def test_another_layout_is_an_error(tmp_path, removed, message):
    pascal(tmp_path / "root")
    (tmp_path / "root" / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "voc")


def test_empty_lists_are_an_error(tmp_path):
    pascal(tmp_path / "root")
    make_texts(tmp_path / "root/VOC2012/ImageSets/Main", trainval__txt="")
    with pytest.raises(UserError, match="root: the lists name no image"):
        read_dataset(tmp_path, "voc", years=[2012])


def test_names_with_spaces_and_other_suffixes(tmp_path):
    pascal(tmp_path / "root")
    make_images(tmp_path / "root/VOC2012/JPEGImages", "IMG 1.PNG", "IMG 2.webp")
    make_texts(tmp_path / "root/VOC2012/ImageSets/Main", trainval__txt="IMG 1\nIMG 2  1\n")
    paths = [file.path for file in read_dataset(tmp_path, "voc", years=[2012]).files]
    assert paths == ["VOC2012/JPEGImages/IMG 1.PNG", "VOC2012/JPEGImages/IMG 2.webp"]
