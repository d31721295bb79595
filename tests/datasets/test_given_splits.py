"""Sources with published or given splits."""

from collections import Counter

import numpy as np
import pytest

from salmask.errors import UserError
from tests.helpers.trees import by_split, images, listing


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
    images(tmp_path / "root", *(f"{kind}/{i}.jpg" for kind in ("ant", "bass") for i in range(30)))
    with pytest.raises(UserError, match="class ant has 30 images"):
        listing(tmp_path, "caltech101")
    assert len(listing(tmp_path, "caltech101", train=20).files) == 60


@pytest.mark.parametrize("place", ["101_ObjectCategories", "caltech101/101_ObjectCategories"])
def test_caltech101_where_torchvision_and_its_archive_put_it(tmp_path, place):
    root = tmp_path / "root"
    images(root / place, *(f"{kind}/{i}.jpg" for kind in ("ant", "bass") for i in range(31)))
    images(root, "caltech101/Annotations/ant/1.jpg")
    found = listing(tmp_path, "caltech101")
    assert found.root == root / place and found.classes == ("ant", "bass")


@pytest.mark.parametrize("names", [(), ("1.jpg",), ("archive/ant/1.jpg", "archive/bass/2.jpg")])
def test_a_folder_that_is_not_caltech101_is_told(tmp_path, names):
    (tmp_path / "root").mkdir()
    images(tmp_path / "root", *names)
    told = rf"of classes with images: {'archive' if len(names) == 2 else 'none'}\. caltech101 wants"
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "caltech101")


@pytest.mark.parametrize("place", [".", "flowers-102"])
def test_flowers102_by_its_official_files(tmp_path, place):
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "root" / place
    images(root, *(f"jpg/image_{n:05d}.jpg" for n in range(1, 5)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 2, 77, 2]])})
    savemat(root / "setid.mat", {"trnid": [[3]], "valid": [[1]], "tstid": [[2, 4]]})
    assert by_split(listing(tmp_path, "flowers102")) == {
        "train": [("jpg/image_00003.jpg", "077")],
        "val": [("jpg/image_00001.jpg", "077")],
        "test": [("jpg/image_00002.jpg", "002"), ("jpg/image_00004.jpg", "002")],
    }
    (root / "setid.mat").write_bytes(b"no such file, says a server, in 1000 words" * 9)
    with pytest.raises(
        UserError, match=r"imagelabels\.mat or setid\.mat of .* is odd\. flowers102"
    ):
        listing(tmp_path, "flowers102")
    (root / "setid.mat").unlink()
    with pytest.raises(
        UserError, match=r"setid\.mat cannot be read: no such.*`salmask fetch flowe"
    ):
        listing(tmp_path, "flowers102")
    (root / "jpg").rename(root / "images")
    with pytest.raises(UserError, match=r"no folder .*root(/flowers-102)?/jpg\. flowers102 wants"):
        listing(tmp_path, "flowers102")


def test_other_demo_images_are_drawn_from_another_number_on(tmp_path):
    some = listing(tmp_path, "demo", images={"train": 3}, first=1000)
    assert [file.path for file in some.files] == [f"train/0100{n}.png" for n in range(3)]
    assert (some.root / "train/01002.png").is_file()
