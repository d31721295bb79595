"""ImageNet-1K in its real layouts, with a few images."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import imagenet as torchvision_imagenet

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, make_texts, read_dataset

CAT, DOG = "n00000001", "n00000002"


def test_imagenet_in_class_folders(tmp_path):
    root = tmp_path / "root"
    make_images(
        root, f"train/{DOG}/{DOG}_9.JPEG", f"train/{CAT}/{CAT}_1.JPEG", f"train/{CAT}/x.JPEG"
    )
    make_images(
        root, f"val/{CAT}/ILSVRC2012_val_00000002.JPEG", f"val/{DOG}/a.JPEG", "val/other/b.JPEG"
    )
    listing = read_dataset(tmp_path, "imagenet", classes=2)
    assert listing.classes == (CAT, DOG)
    assert files_by_split(listing) == {
        "train": [
            (f"train/{CAT}/{CAT}_1.JPEG", CAT),
            (f"train/{CAT}/x.JPEG", CAT),
            (f"train/{DOG}/{DOG}_9.JPEG", DOG),
        ],
        "val": [(f"val/{CAT}/ILSVRC2012_val_00000002.JPEG", CAT), (f"val/{DOG}/a.JPEG", DOG)],
    }
    assert listing.root == root


FLAT = [f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "root"
    make_images(root, f"train/{CAT}/1.JPEG", f"train/{DOG}/2.JPEG", *FLAT)
    return root


def devkit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original archive: ids start at 1, and belong to a tree of words with two leaves."""
    savemat = pytest.importorskip("scipy.io").savemat
    data = root / "unpacked/ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    names = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    words = [(1, DOG, "dog, hound", "x", 0), (2, CAT, "cat", "x", 0), (3, "n9", "animal", "x", 2)]
    synsets = np.array(words, dtype=[(name, object) for name in names])
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n")
    file = root / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(root / "unpacked/ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    md5 = torchvision_imagenet.check_integrity.__globals__["calculate_md5"](file)
    monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, "devkit", (file.name, md5))


def meta(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(({DOG: ("dog",), CAT: ("cat",)}, [DOG, CAT, DOG]), root / "meta.bin")


def kaggle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {3: f"{DOG} 1 2 3 4 {DOG} 5 6 7 8", 1: f"{DOG} 1 2 3 4", 2: f"{CAT} 9 9 9 9"}
    lines = [f"ILSVRC2012_val_{n:08d},{row} " for n, row in rows.items()]
    make_texts(root, LOC_val_solution__csv="\n".join(["ImageId,PredictionString", *lines, ""]))


@pytest.mark.parametrize("write", [devkit, meta, kaggle])
def test_a_flat_validation_folder_has_the_classes_of_a_file(flat, tmp_path, monkeypatch, write):
    write(flat, monkeypatch)
    before = sorted(path.name for path in flat.iterdir())
    listing = read_dataset(tmp_path, "imagenet", classes=2)
    assert files_by_split(listing)["val"] == list(zip(FLAT, (DOG, CAT, DOG), strict=True))
    assert (
        sorted(path.name for path in flat.iterdir()) == before
    )  # nothing is written to the folder


def test_a_flat_validation_folder_alone_is_an_error(flat, tmp_path):
    with pytest.raises(UserError, match=r"val contains images.* none of ILSVRC2012_devkit_t12.*gz"):
        read_dataset(tmp_path, "imagenet", classes=2)
    (flat / "meta.bin").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"torchvision cannot read meta\.bin or "):
        read_dataset(tmp_path, "imagenet", classes=2)
    (flat / "meta.bin").unlink()
    (flat / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"nonsense")
    pytest.importorskip("scipy")
    with pytest.raises(
        UserError, match=r"torchvision cannot read .*ILSVRC2012_devkit_t12\.tar\.gz"
    ):
        read_dataset(tmp_path, "imagenet", classes=2)


@pytest.mark.parametrize("write", [meta, kaggle])
def test_a_flat_folder_with_another_number_of_images_is_an_error(
    flat, tmp_path, monkeypatch, write
):
    write(flat, monkeypatch)
    make_images(flat, "val/ILSVRC2012_val_00000004.JPEG")
    with pytest.raises(
        UserError, match="val contains 4 images directly, but the classes of 3 images are"
    ):
        read_dataset(tmp_path, "imagenet", classes=2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"folder .*root/train does not exist\. Expected for imagenet: train/WNID.*ImageNet's"),
        (
            (f"train/{CAT}/1.JPEG",),
            r"1 folders named by WordNet ids \(such as n01440764\) instead of 2",
        ),
        (("train/cat/1.JPEG", "train/dog/1.JPEG"), "contains 0 folders named by"),
        ((f"train/{CAT}/1.JPEG", f"train/{DOG}/2.JPEG"), r"folder .*root/val does not exist\. "),
        (
            (f"train/{CAT}/1.JPEG", f"train/{DOG}/2.JPEG", f"val/{DOG}/3.JPEG"),
            f"val lacks 1 of 2 class folders: {CAT}",
        ),
    ],
)
def test_another_layout_is_an_error(tmp_path, names, message):
    (tmp_path / "root").mkdir()
    make_images(tmp_path / "root", *names)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "imagenet", classes=2)


def test_archives_of_classes_are_an_error(tmp_path):
    make_texts(tmp_path / "root/train", n01440764__tar="")
    with pytest.raises(
        UserError, match=r"contains 0 folders .* instead of 1000\. It contains \.tar files: unpack"
    ):
        read_dataset(tmp_path, "imagenet")
