"""Sources with published or given splits."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmask.config import Choice
from salmask.data.sources import configured
from salmask.errors import UserError


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / name)


def listing(tmp_path: Path, name: str, seed: int = 0, **options: object):
    choice = Choice(name, {"root": str(tmp_path / "root")} | options)
    return configured(choice, "transfer.x")[1](tmp_path / "out", seed)


def by_split(found) -> dict[str, list[tuple[str, str]]]:
    made: dict[str, list[tuple[str, str]]] = {}
    for file in found.files:
        kind = found.classes[file.label] if file.label >= 0 else ""
        made.setdefault(file.split, []).append((file.path, kind))
    return made


def test_splits_by_folders(tmp_path):
    root = tmp_path / "root"
    images(root, "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "test/a/4.jpg", "test/5.jpg")
    assert by_split(listing(tmp_path, "splits")) == {
        "train": [("train/a/1.jpg", "a"), ("train/b/2.jpg", "b")],
        "val": [("val/b/3.jpg", "b")],
        "test": [("test/5.jpg", ""), ("test/a/4.jpg", "a")],
    }


def test_splits_by_lists(tmp_path):
    root = tmp_path / "root"
    images(root, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "c/5.jpg")
    (root / "train.txt").write_text("b/3.jpg\na/1.jpg\n\n")
    (root / "held.txt").write_text("a/2.jpg\n")
    found = listing(tmp_path, "splits", test="held.txt")
    assert by_split(found) == {
        "train": [("b/3.jpg", "b"), ("a/1.jpg", "a")],
        "test": [("a/2.jpg", "a")],
    }
    assert found.classes == ("a", "b")  # what no list names is no class


@pytest.mark.parametrize(
    ("lists", "options", "told"),
    [
        ({"train": "a/1.jpg"}, {}, "no folder test in it, nor a list test or test.txt"),
        ({"train": "a/1.jpg", "test": "a/2.jpg"}, {"val": "dev"}, "no folder dev in it"),
        ({"train": "a/1.jpg", "test": "a/1.jpg"}, {}, "a/1.jpg is of train and of test"),
        ({"train": "", "test": ""}, {}, "no images in folders of classes"),
    ],
)
def test_splits_that_do_not_fit_are_refused(tmp_path, lists, options, told):
    images(tmp_path / "root", "a/1.jpg", "a/2.jpg")
    for name, text in lists.items():
        (tmp_path / "root" / f"{name}.txt").write_text(text)
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "splits", **options)


def test_caltech101_takes_25_and_5_of_every_class_but_the_background(tmp_path):
    root = tmp_path / "root"
    images(root, *(f"ant/{i}.jpg" for i in range(31)), *(f"bass/{i}.jpg" for i in range(40)))
    images(root, "BACKGROUND_Google/1.jpg", "readme.jpg")
    found = listing(tmp_path, "caltech101")
    assert found.classes == ("ant", "bass")
    counts = Counter((file.split, found.classes[file.label]) for file in found.files)
    assert counts == {
        ("train", "ant"): 25, ("val", "ant"): 5, ("test", "ant"): 1,
        ("train", "bass"): 25, ("val", "bass"): 5, ("test", "bass"): 10,
    }  # fmt: skip
    assert len({file.path for file in found.files}) == 71  # without replacement
    assert listing(tmp_path, "caltech101") == found
    assert listing(tmp_path, "caltech101", seed=1) != found


def test_a_class_that_leaves_nothing_to_test_is_named(tmp_path):
    images(tmp_path / "root", *(f"ant/{i}.jpg" for i in range(30)))
    with pytest.raises(UserError, match="class ant has 30 images"):
        listing(tmp_path, "caltech101")
    assert len(listing(tmp_path, "caltech101", train=20).files) == 30


def test_flowers102_by_its_official_files(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "root"
    images(root, *(f"jpg/image_{n:05d}.jpg" for n in range(1, 5)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 2, 77, 2]])})
    savemat(root / "setid.mat", {"trnid": [[3]], "valid": [[1]], "tstid": [[2, 4]]})
    assert by_split(listing(tmp_path, "flowers102")) == {
        "train": [("jpg/image_00003.jpg", "077")],
        "val": [("jpg/image_00001.jpg", "077")],
        "test": [("jpg/image_00002.jpg", "002"), ("jpg/image_00004.jpg", "002")],
    }
    (root / "setid.mat").unlink()
    with pytest.raises(UserError, match=r"imagelabels\.mat and setid\.mat must lie there"):
        listing(tmp_path, "flowers102")


def test_cifar_comes_out_of_its_archive_as_files(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        with (folder / name).open("wb") as stream:
            pickle.dump({"data": pixels, "labels": [3, 0]}, stream)
    with (folder / "batches.meta").open("wb") as stream:
        pickle.dump({"label_names": list("abcdefghij")}, stream)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    found = listing(tmp_path, "cifar10")
    assert Counter(file.split for file in found.files) == {"train": 10, "val": 2}
    assert by_split(found)["val"] == [("val/00000.png", "d"), ("val/00001.png", "a")]
    seen = np.array(Image.open(found.root / "train/00001.png"))
    assert (seen == pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)).all()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_missing_archive_is_not_downloaded(tmp_path, name):
    with pytest.raises(UserError, match="put the extracted archive there"):
        listing(tmp_path, name)


def test_other_demo_images_are_drawn_from_another_number_on(tmp_path):
    some = listing(tmp_path, "demo", images={"train": 3}, first=1000)
    assert [file.path for file in some.files] == [f"train/0100{n}.png" for n in range(3)]
    assert (some.root / "train/01002.png").is_file()
