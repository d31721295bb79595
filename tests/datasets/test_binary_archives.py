"""CIFAR and STL-10: binary files in their true layouts, a few images each."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from salmask.errors import UserError
from tests.helpers.trees import files_by_split, read_dataset

LETTERS = list("abcdefghij")


@pytest.fixture(autouse=True)
def _any_md5(monkeypatch):
    """Replaces the md5 check: only files with the content `broken` fail."""
    check = "torchvision.datasets.utils.check_md5"
    monkeypatch.setattr(check, lambda path, md5: Path(path).read_bytes() != b"broken")


def cifar10(root: Path) -> np.ndarray:
    """Two images in every batch; their pixels (2,3,32,32)."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        with (folder / name).open("wb") as stream:
            pickle.dump({"data": pixels, "labels": [3, 0]}, stream)
    with (folder / "batches.meta").open("wb") as stream:
        pickle.dump({"label_names": LETTERS}, stream)
    return pixels.reshape(2, 3, 32, 32)


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 3), ("test", 2)):
        entry = {"data": np.zeros((count, 3072), np.uint8), "fine_labels": [1] * count}
        with (folder / name).open("wb") as stream:
            pickle.dump(entry, stream)
    with (folder / "meta").open("wb") as stream:
        pickle.dump({"fine_label_names": LETTERS}, stream)


def stl10(root: Path) -> np.ndarray:
    """3 labelled, 4 unlabelled and 2 test images; all pixels (9, 3, 96, 96)."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 96, 96), np.uint8)
    parts = {"train_X": pixels[:3], "unlabeled_X": pixels[3:7], "test_X": pixels[7:]}
    for name, part in parts.items():
        part.transpose(0, 1, 3, 2).tofile(folder / f"{name}.bin")  # column by column
    np.array([10, 1, 2], np.uint8).tofile(folder / "train_y.bin")  # from 1 on
    np.array([2, 2], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("\n".join(LETTERS) + "\n")
    return pixels


def pixels_of(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).transpose(2, 0, 1)


def test_cifar10_is_written_as_png_files(tmp_path):
    pixels = cifar10(tmp_path / "root")
    listing = read_dataset(tmp_path, "cifar10")
    assert Counter(file.split for file in listing.files) == {"train": 10, "val": 2}
    assert files_by_split(listing)["val"] == [("val/00000.png", "d"), ("val/00001.png", "a")]
    assert (pixels_of(listing.root / "train/00001.png") == pixels[1]).all()


def test_cifar100_has_its_fine_labels(tmp_path):
    cifar100(tmp_path / "root")
    listing = read_dataset(tmp_path, "cifar100")
    assert Counter((file.split, file.label) for file in listing.files) == {
        ("train", 1): 3, ("val", 1): 2,
    }  # fmt: skip
    assert listing.classes == tuple(LETTERS)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_stl10_with_and_without_its_unlabelled_images(tmp_path, unlabelled):
    pixels = stl10(tmp_path / "root")
    listing = read_dataset(tmp_path, "stl10", unlabelled=unlabelled)
    more = [(f"unlabeled/{n:05d}.png", "") for n in range(4)]
    assert files_by_split(listing) == {
        "train": [("train/00000.png", "j"), ("train/00001.png", "a"), ("train/00002.png", "b")]
        + (more if unlabelled else []),
        "val": [("test/00000.png", "b"), ("test/00001.png", "b")],
    }
    assert (pixels_of(listing.root / "train/00002.png") == pixels[2]).all()
    if unlabelled:
        assert (pixels_of(listing.root / "unlabeled/00003.png") == pixels[6]).all()


SETS = {
    "cifar10": (cifar10, datasets.CIFAR10, "cifar-10-batches-py/data_batch_3"),
    "cifar100": (cifar100, datasets.CIFAR100, "cifar-100-python/test"),
    "stl10": (stl10, datasets.STL10, "stl10_binary/test_X.bin"),
}


@pytest.mark.parametrize("name", SETS)
def test_missing_and_broken_files_are_errors_and_not_downloaded(tmp_path, monkeypatch, name):
    make, theirs, some = SETS[name]
    root, folder = tmp_path / "root", some.partition("/")[0]
    monkeypatch.setattr(theirs, "download", lambda self: pytest.fail("a download"))
    root.mkdir()
    fetch = f"`salmask fetch {name} {root}`"
    with pytest.raises(
        UserError, match=f"root: it does not contain the folder {folder}.*To get it: run {fetch}"
    ):
        read_dataset(tmp_path, name)
    make(root)
    (root / some).write_bytes(b"broken")
    with pytest.raises(UserError, match=f"{folder}: a file is missing or has a wrong md5.*{fetch}"):
        read_dataset(tmp_path, name)
    (root / some).unlink()
    with pytest.raises(UserError, match=f"{folder}: a file is missing"):
        read_dataset(tmp_path, name)


def test_missing_class_names_of_stl10_are_an_error(tmp_path):
    stl10(tmp_path / "root")
    (tmp_path / "root/stl10_binary/class_names.txt").unlink()
    with pytest.raises(UserError, match=r"class_names\.txt cannot be read: no such.*fetch stl10"):
        read_dataset(tmp_path, "stl10")
