"""Sets of official lists in their real layouts, a few images each."""

import json
from pathlib import Path

import pytest

from salmask.errors import UserError
from tests.helpers.trees import by_split, images, listing, texts


def inat(root: Path, folder: str = "train_val2018") -> None:
    """iNaturalist 2018's layout: ids of images and categories are nobody's row numbers."""
    files = {1: ("Aves", 11, "a"), 700001: ("Fungi", 2, "b"), 9: ("Fungi", 2, "c")}
    for group, kind, name in files.values():
        images(root / folder, f"{group}/{kind}/{name}.jpg")
    categories = [{"id": kind, "name": "x", "supercategory": "y"} for kind in (11, 2, 5)]
    for split, ids in (("train", (1, 700001)), ("val", (9,))):
        paths = {n: f"train_val2018/{files[n][0]}/{files[n][1]}/{files[n][2]}.jpg" for n in ids}
        told = {
            "images": [{"id": n, "file_name": path, "width": 9} for n, path in paths.items()],
            "annotations": [
                {"id": 0, "image_id": n, "category_id": files[n][1]} for n in reversed(ids)
            ],
            "categories": categories,
        }
        (root / f"{split}2018.json").write_text(json.dumps(told))


@pytest.mark.parametrize("folder", ["train_val2018", "2018"])
def test_inat2018_by_its_annotations(tmp_path, folder):
    inat(tmp_path / "root", folder)
    found = listing(tmp_path, "inat2018")
    assert found.classes == ("2", "5", "11")
    assert by_split(found) == {
        "train": [(f"{folder}/Aves/11/a.jpg", "11"), (f"{folder}/Fungi/2/b.jpg", "2")],
        "val": [(f"{folder}/Fungi/2/c.jpg", "2")],
    }


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "train_val2018",
            None,
            r"no folder train_val2018 in it, nor torchvision's 2018\. inat2018",
        ),
        ("val2018.json", None, r"val2018\.json cannot be read: no such.*competition's page"),
        ("train2018.json", "{]", r"train2018\.json is not in iNaturalist's format: JSONDecodeErr"),
        ("train2018.json", "[]", "train2018.json is not in iNaturalist's format"),
        ("train2018.json", '{"images": [], "annotations": []}', r"KeyError\('categories'\)"),
        (
            "train2018.json",
            '{"images": [{"id": 3, "file_name": "x"}], "annotations": [], "categories": []}',
            r"KeyError\(3\) is missing",
        ),
        ("train_val2018/Aves/11/a.jpg", None, r"Aves/11/a\.jpg, the first of the list, is not th"),
    ],
)
def test_another_layout_of_inat2018_is_told(tmp_path, file, text, told):
    inat(tmp_path / "root")
    if text is None:
        (tmp_path / "root" / file).rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "root" / file).write_text(text)
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "inat2018")


LISTS = "trainvalsplit_places205/{}_places205.csv"


def places(root: Path, base: str) -> None:
    images(root / base, "a/abbey/1.jpg", "f/field/wild/2.jpg", "a/abbey/3 4.jpg")
    train = "a/abbey/1.jpg 0\nf/field/wild/2.jpg 1\n"
    texts(root, **{LISTS.format("train"): train, LISTS.format("val"): "a/abbey/3 4.jpg 0\n"})


@pytest.mark.parametrize("base", ["data/vision/torralba/deeplearning/images256", "images256", ""])
def test_places205_by_its_lists(tmp_path, base):
    places(tmp_path / "root", base)
    found = listing(tmp_path, "places205")
    assert found.classes == ("a/abbey", "f/field/wild")
    at = base and f"{base}/"
    assert by_split(found) == {
        "train": [(f"{at}a/abbey/1.jpg", "a/abbey"), (f"{at}f/field/wild/2.jpg", "f/field/wild")],
        "val": [(f"{at}a/abbey/3 4.jpg", "a/abbey")],
    }


@pytest.mark.parametrize(
    ("split", "text", "told"),
    [
        ("train", None, r"train_places205\.csv cannot be read: no such.*Places365, which is anoth"),
        ("val", None, r"val_places205\.csv cannot be read: no such file"),
        (
            "val",
            "a/abbey/1.jpg 0\na/abbey/1.jpg,0\n",
            r"val_places205\.csv, line 2: no path and nu",
        ),
        (
            "train",
            "a/abbey/9.jpg 0\n",
            r"a/abbey/9\.jpg, the first of the list, is neither there n",
        ),
        ("train", "a/abbey/1.jpg 7\n", r"not numbered from 0 on, but \[0, 7\]"),
    ],
)
def test_another_layout_of_places205_is_told(tmp_path, split, text, told):
    places(tmp_path / "root", "images256")
    path = tmp_path / "root" / LISTS.format(split)
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "places205")


# -------------------------------------------------------------------------- images without labels


def pascal(root: Path) -> None:
    for year, part, name in ((2007, "trainval", "000005"), (2007, "test", "000001"),
                             (2012, "trainval", "2008_000002")):  # fmt: skip
        images(root / f"VOC{year}/JPEGImages", f"{name}.jpg")
        texts(root / f"VOC{year}/ImageSets/Main", **{f"{part}__txt": f"{name}\n"})


@pytest.mark.parametrize("place", [".", "VOCdevkit"])
def test_voc_without_labels(tmp_path, place):
    pascal(tmp_path / "root" / place)
    found = listing(tmp_path, "voc")
    assert found.classes == ()
    assert by_split(found) == {
        "train": [
            ("VOC2007/JPEGImages/000005.jpg", ""),
            ("VOC2012/JPEGImages/2008_000002.jpg", ""),
        ],
        "val": [("VOC2007/JPEGImages/000001.jpg", "")],
    }
    assert {file.path[:7] for file in listing(tmp_path, "voc", years=[2012]).files} == {"VOC2012"}


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("VOC2012", r"no folder .*VOC2012/JPEGImages\. voc wants.*fetch voc2007 .*fetch voc2012 "),
        ("VOC2012/ImageSets/Main/trainval.txt", r"trainval\.txt cannot be read: no such file"),
        ("VOC2007/JPEGImages/000005.jpg", r"000005\.jpg, the first of the list, is not there"),
    ],
)
def test_another_layout_of_voc_is_told(tmp_path, gone, told):
    pascal(tmp_path / "root")
    (tmp_path / "root" / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=told):
        listing(tmp_path, "voc")


def test_lists_without_an_image_are_told(tmp_path):
    pascal(tmp_path / "root")
    texts(tmp_path / "root/VOC2012/ImageSets/Main", trainval__txt="")
    with pytest.raises(UserError, match="root: the lists name no image"):
        listing(tmp_path, "voc", years=[2012])


@pytest.mark.parametrize("place", [".", "images"])
def test_coco_without_labels(tmp_path, place):
    root = tmp_path / "root"
    images(root / place, "train2017/2.jpg", "train2017/1.jpg")
    texts(root, **{"annotations/instances_train2017__json": "{}"})
    wanted = {"train": [("train2017/1.jpg", ""), ("train2017/2.jpg", "")]}
    assert by_split(listing(tmp_path, "coco")) == wanted
    images(root / place, "val2017/3.jpg")
    assert by_split(listing(tmp_path, "coco")) == wanted | {"val": [("val2017/3.jpg", "")]}


def test_another_layout_of_coco_is_told(tmp_path):
    images(tmp_path / "root", "train2014/1.jpg")
    with pytest.raises(UserError, match=r"no folder .*root/train2017\. coco wants: train2017"):
        listing(tmp_path, "coco")
