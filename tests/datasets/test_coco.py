"""COCO 2017 in its real layout, with a few images."""

import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, make_texts, read_dataset


@pytest.mark.parametrize("place", [".", "images"])
def test_coco_without_labels(tmp_path, place):
    root = tmp_path / "root"
    make_images(root / place, "train2017/2.jpg", "train2017/1.jpg")
    make_texts(root, **{"annotations/instances_train2017__json": "{}"})
    expected = {"train": [("train2017/1.jpg", ""), ("train2017/2.jpg", "")]}
    assert files_by_split(read_dataset(tmp_path, "coco")) == expected
    make_images(root / place, "val2017/3.jpg")
    assert files_by_split(read_dataset(tmp_path, "coco")) == expected | {
        "val": [("val2017/3.jpg", "")]
    }


def test_another_layout_is_an_error(tmp_path):
    make_images(tmp_path / "root", "train2014/1.jpg")
    with pytest.raises(
        UserError, match=r"folder .*root/train2017 does not exist\. Expected for coco: train2017"
    ):
        read_dataset(tmp_path, "coco")
