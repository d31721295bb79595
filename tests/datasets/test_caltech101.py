"""Caltech-101 in its real layouts, with a few images."""

from collections import Counter

import pytest

from salmask.errors import UserError
from tests.helpers.trees import make_images, read_dataset


def test_caltech101_has_25_and_5_images_per_class_but_no_background(tmp_path):
    root = tmp_path / "root"
    make_images(root, *(f"ant/{i}.jpg" for i in range(31)), *(f"bass/{i}.jpg" for i in range(40)))
    make_images(root, "BACKGROUND_Google/1.jpg", "readme.jpg")
    listing = read_dataset(tmp_path, "caltech101")
    assert listing.classes == ("ant", "bass")
    counts = Counter((file.split, listing.classes[file.label]) for file in listing.files)
    assert counts == {
        ("train", "ant"): 25, ("val", "ant"): 5, ("test", "ant"): 1,
        ("train", "bass"): 25, ("val", "bass"): 5, ("test", "bass"): 10,
    }  # fmt: skip
    assert len({file.path for file in listing.files}) == 71  # without replacement
    assert read_dataset(tmp_path, "caltech101") == listing
    assert read_dataset(tmp_path, "caltech101", seed=1) != listing


def test_a_class_without_test_images_is_an_error(tmp_path):
    make_images(
        tmp_path / "root", *(f"{kind}/{i}.jpg" for kind in ("ant", "bass") for i in range(30))
    )
    with pytest.raises(UserError, match="class ant has 30 images"):
        read_dataset(tmp_path, "caltech101")
    assert len(read_dataset(tmp_path, "caltech101", train=20).files) == 60


@pytest.mark.parametrize("place", ["101_ObjectCategories", "caltech101/101_ObjectCategories"])
def test_caltech101_in_the_folder_of_torchvision_or_the_archive(tmp_path, place):
    root = tmp_path / "root"
    make_images(root / place, *(f"{kind}/{i}.jpg" for kind in ("ant", "bass") for i in range(31)))
    make_images(root, "caltech101/Annotations/ant/1.jpg")
    listing = read_dataset(tmp_path, "caltech101")
    assert listing.root == root / place and listing.classes == ("ant", "bass")


@pytest.mark.parametrize("names", [(), ("1.jpg",), ("archive/ant/1.jpg", "archive/bass/2.jpg")])
def test_another_folder_than_caltech101_is_an_error(tmp_path, names):
    (tmp_path / "root").mkdir()
    make_images(tmp_path / "root", *names)
    names_in_root = "archive" if len(names) == 2 else "none"
    message = rf"class folders with images: {names_in_root}\. Expected for caltech101: "
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "caltech101")
