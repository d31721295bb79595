"""Tiny-ImageNet in its real layout, with a few images."""

from pathlib import Path

import pytest

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, read_dataset

CAT, DOG = "n00000001", "n00000002"


def tiny(root: Path) -> None:
    """Tiny-ImageNet's layout with two classes."""
    make_images(root, f"train/{DOG}/images/{DOG}_0.JPEG", f"train/{CAT}/images/{CAT}_0.JPEG")
    make_images(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    (root / "wnids.txt").write_text(f"{DOG}\n{CAT}\n")
    (root / "train" / DOG / f"{DOG}_boxes.txt").write_text(f"{DOG}_0.JPEG\t0\t0\t62\t62\n")
    rows = f"val_0.JPEG\t{CAT}\t0\t32\t44\t62\nval_1.JPEG\t{DOG}\t52\t55\t57\t59\n"
    (root / "val/val_annotations.txt").write_text(rows)


@pytest.mark.parametrize("place", [".", "tiny-imagenet-200"])
def test_tinyimagenet(tmp_path, place):
    tiny(tmp_path / "root" / place)
    listing = read_dataset(tmp_path, "tinyimagenet")
    assert listing.root == (tmp_path / "root" / place).resolve()
    assert files_by_split(listing) == {
        "train": [
            (f"train/{CAT}/images/{CAT}_0.JPEG", CAT),
            (f"train/{DOG}/images/{DOG}_0.JPEG", DOG),
        ],
        "val": [("val/images/val_0.JPEG", CAT), ("val/images/val_1.JPEG", DOG)],
    }


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (
            "wnids.txt",
            None,
            r"wnids\.txt cannot be read: no such file.*Expected for tinyimagenet: wnids",
        ),
        (f"train/{CAT}/images", None, f"folder .*train/{CAT}/images does not exist"),
        ("val/images", None, r"val/images does not exist\. Expected for tinyimagenet"),
        ("val/val_annotations.txt", None, "val_annotations.txt cannot be read: no such file"),
        (
            "val/val_annotations.txt",
            f"a.JPEG\t{CAT}\nb.JPEG {DOG}\n",
            "line 2: expected a file and a class",
        ),
        (
            "val/val_annotations.txt",
            "a.JPEG\tn00000003\t0\n",
            "line 1: expected a file and a class of wnids",
        ),
    ],
)
def test_another_layout_is_an_error(tmp_path, path, text, message):
    tiny(tmp_path / "root")
    if text is None:
        (tmp_path / "root" / path).rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "root" / path).write_text(text)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "tinyimagenet")
