"""ImageNet-100 in a folder of ImageNet-1K."""

import json
import re

import pytest
import torch

from salmask.datasets import imagenet100
from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, read_dataset

CAT = "n00000001"
HUNDRED = json.loads(imagenet100._CLASSES.read_text())
FLAT = [f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2)]


def test_the_hundred_classes() -> None:
    assert len(set(HUNDRED)) == 100 and sorted(HUNDRED) == HUNDRED
    assert HUNDRED[0] == "n01558993" and all(re.fullmatch(r"n\d{8}", wnid) for wnid in HUNDRED)


def test_imagenet100_reads_its_classes_in_a_folder_of_imagenet(tmp_path):
    root = tmp_path / "root"
    for split in ("train", "val"):
        for wnid in [*HUNDRED, CAT]:
            (root / split / wnid).mkdir(parents=True)
    make_images(
        root, f"train/{HUNDRED[7]}/1.JPEG", f"val/{HUNDRED[3]}/2.JPEG", f"train/{CAT}/3.JPEG"
    )
    listing = read_dataset(tmp_path, "imagenet100")
    assert listing.classes == tuple(HUNDRED) and listing.root == root
    assert files_by_split(listing) == {
        "train": [(f"train/{HUNDRED[7]}/1.JPEG", HUNDRED[7])],
        "val": [(f"val/{HUNDRED[3]}/2.JPEG", HUNDRED[3])],
    }
    (root / "train" / HUNDRED[3]).rmdir()
    with pytest.raises(
        UserError,
        match=f"train lacks 1 of 100 class folders: {HUNDRED[3]}.*Expected for imagenet100",
    ):
        read_dataset(tmp_path, "imagenet100")


def test_imagenet100_with_a_flat_validation_folder(tmp_path, monkeypatch):
    root = tmp_path / "root"
    make_images(root, *(f"train/{wnid}/1.JPEG" for wnid in HUNDRED), *FLAT[:2])
    torch.save(({}, [CAT, HUNDRED[2]]), root / "meta.bin")
    assert files_by_split(read_dataset(tmp_path, "imagenet100"))["val"] == [(FLAT[1], HUNDRED[2])]
