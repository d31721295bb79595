"""Imagenette in its real layout, with a few images."""

import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, make_texts, read_dataset


@pytest.mark.parametrize("place", [".", "imagenette2-160"])
def test_imagenette(tmp_path, place):
    root = tmp_path / "root" / place
    kinds = [f"n0000000{n}" for n in range(10)]
    make_images(root, *(f"{s}/{k}/{s}.JPEG" for s in ("train", "val") for k in kinds))
    make_texts(root, noisy_imagenette__csv="path,noisy_labels_0\n")
    listing = read_dataset(tmp_path, "imagenette")
    assert listing.classes == tuple(kinds) and listing.root == root.resolve()
    assert files_by_split(listing)["val"] == [(f"val/{kind}/val.JPEG", kind) for kind in kinds]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("x/1.jpg",),
            r"root/train does not exist\. Expected for imagenette.*`salmask fetch imagenette .*ro",
        ),
        (("train/a/1.jpg",), "train contains 1 class folders instead of 10"),
        (
            ("imagenette2/train/a/1.jpg", "imagenette2-320/train/a/1.jpg"),
            "root contains imagenette2 and imagenette2-320: use one of them as root",
        ),
    ],
)
def test_another_layout_is_an_error(tmp_path, names, message):
    make_images(tmp_path / "root", *names)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "imagenette")
