import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from salmask.datasets import folder_fingerprint as watch
from salmask.detection.datasets import coco, configured, demo, voc
from salmask.errors import UserError
from salmask.params.values import Choice


def choice(name="demo", **options):
    return Choice(name, {"root": "x", "recipe": "voc"} | options)


def test_options_of_reading_and_of_training_stand_side_by_side():
    source, options = configured(
        choice("coco", train="a.json", masks=False, lr=0.1, norm="local"), "p: detect.x"
    )
    assert source.keywords["train"] == "a.json" and source.keywords["test_images"] == "val2017"
    assert source.keywords["masks"] is False and options["masks"] is False
    assert (options["lr"], options["recipe"], options["norm"]) == (0.1, "voc", "local")
    assert "root" not in options and "lr" not in source.keywords


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (choice("vocs"), "p: detect.x: no `vocs` here; choose from voc, coco, demo"),
        (choice(tests=1), r"p: detect.x: tests: no such key, got 1 \(allowed: root, images, side"),
        (choice("voc", test_share=0.1), "test_share: no such key"),
        (Choice("demo", {"root": "x"}), "recipe: Field required"),
        (Choice("demo", {"recipe": "voc"}), "root: Field required"),
        (choice(recipe="fast"), "p: detect.x: recipe: no `fast` here; choose from voc, coco_1x"),
        (choice(iterations=100), r"milestones \[18000, 22000\] must grow and lie below the 100"),
        (choice(milestones=[5, 5]), "must grow"),
        (choice(batch=0), "batch: Input should be greater than 0, got 0"),
        (choice(norm="group"), "norm: Input should be 'sync', 'local' or 'frozen'"),
        (choice(flip=2), "flip: Input should be less than or equal to 1"),
        (choice(short_sides=[]), "short_sides: "),
        (choice("coco", bad="ignore"), "bad: Input should be 'skip' or 'stop'"),
        (choice(images={"train": 3, "val": 2}), "images.val"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(wanted, reason):
    with pytest.raises(UserError, match=reason):
        configured(wanted, "p: detect.x")


def a_year(root, year, **lists):
    folder = root / f"VOC{year}"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for name, images in lists.items():
        (folder / f"ImageSets/Main/{name}.txt").write_text("\n".join(images))
        for image in images:
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            size = "<size><width>20</width><height>10</height></size>"
            text = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
            (folder / f"Annotations/{image}.xml").write_text(text)
            Image.new("RGB", (20, 10)).save(folder / f"JPEGImages/{image}.jpg")
    return folder


def names(part):
    return [picture.file.name for picture in part.pictures]


def test_voc_is_2007_and_2012_for_training_and_2007_for_testing(tmp_path):
    a_year(tmp_path, 2007, trainval=["a", "b", "a"], test=["c"])
    a_year(tmp_path, 2012, trainval=["d"])
    root, train, test = voc(tmp_path, 0, root=tmp_path)
    assert root == tmp_path
    assert (names(train), names(test)) == (["a.jpg", "b.jpg", "d.jpg"], ["c.jpg"])
    assert train.rule == test.rule == "voc" and len(train.classes) == 20


def test_voc_of_one_folder_with_classes_of_its_own(tmp_path):
    folder = a_year(tmp_path, 1, trainval=["a"], test=["c"])
    _, train, test = voc(
        tmp_path, 0, root=folder, train=("trainval",), test=("test",), classes=("dog", "cat")
    )
    assert (names(train), names(test)) == (["a.jpg"], ["c.jpg"])
    assert train.pictures[0].labels.tolist() == [1]


def coco_folder(folder, count=20):
    """One file for `count` images of 20x10 px, the first without objects."""
    (folder / "images").mkdir(parents=True)
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    images, objects = [], []
    for i in range(count):
        name = f"{i:02d}.png"
        Image.fromarray(np.full((10, 20, 3), i, np.uint8)).save(folder / "images" / name)
        images.append({"id": i, "file_name": name, "height": 10, "width": 20})
        if i:
            objects.append({"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 6, 6],
                            "segmentation": square})  # fmt: skip
    told = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "all.json").write_text(json.dumps(told))
    return told


ONE_FILE = {"train": "all.json", "train_images": "images"}


def test_one_coco_file_can_be_split_by_the_seed(tmp_path):
    coco_folder(tmp_path)
    options = ONE_FILE | {"root": tmp_path, "test": None, "test_share": 0.3}
    _, train, test = coco(tmp_path, 0, **options)
    assert sorted(names(train) + names(test)) == [f"{i:02d}.png" for i in range(20)]
    assert 2 <= len(test.pictures) <= 10 and train.has_masks() and test.has_masks()
    assert names(coco(tmp_path, 0, **options)[2]) == names(test)
    assert names(coco(tmp_path, 1, **options)[2]) != names(test)
    more = coco(tmp_path, 0, **(options | {"test_share": 0.6}))[2]
    assert set(names(test)) < set(names(more))  # a smaller share is part of a larger one
    with pytest.raises(UserError, match="test_share 0 of 20 images leaves none"):
        coco(tmp_path, 0, **(options | {"test_share": 0.0}))


def test_masks_are_read_where_every_object_has_one(tmp_path):
    told = coco_folder(tmp_path)
    both = ONE_FILE | {"root": tmp_path, "test": "all.json", "test_images": "images"}
    _, train, test = coco(tmp_path, 0, **both)
    assert train.has_masks() and names(train) == names(test)
    assert not coco(tmp_path, 0, **both, masks=False)[1].has_masks()
    del told["annotations"][3]["segmentation"]
    (tmp_path / "all.json").write_text(json.dumps(told))
    plain = coco(tmp_path, 0, **both)[1]
    assert not plain.has_masks() and sum(map(len, plain.pictures)) == 19
    asked = coco(tmp_path, 0, **both, masks=True)[1]
    assert asked.has_masks() and sum(map(len, asked.pictures)) == 18


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.json", "a/../../b.json"])
def test_what_dvc_does_not_watch_is_not_read(tmp_path, name):
    with pytest.raises(UserError, match="must be a path within root"):
        coco(tmp_path, 0, root=tmp_path, train=name)
    with pytest.raises(UserError, match="must be a path within root"):
        voc(tmp_path, 0, root=tmp_path, train=(name,))


def test_root_may_be_a_watch_file_and_must_be_there(tmp_path):
    coco_folder(tmp_path / "data")
    watch.write(tmp_path / "data", tmp_path / "watched.json")
    options = ONE_FILE | {"test": None}
    root, train, _ = coco(tmp_path, 0, root=tmp_path / "watched.json", **options)
    assert root == tmp_path / "data" and train.pictures
    with pytest.raises(UserError, match=r"^root: .*nowhere is neither a folder nor"):
        coco(tmp_path, 0, root=tmp_path / "nowhere", **options)


def test_the_demo_knows_where_its_things_are(tmp_path):
    options = {"root": "", "images": {"test": 2, "train": 6}, "side": 48}
    root, train, test = demo(tmp_path, 3, **options)
    assert root == tmp_path and (len(train.pictures), len(test.pictures)) == (6, 2)
    assert train.has_masks() and len(train.classes) == 10
    assert {len(p) for p in train.pictures} > {1}  # one, and more than one
    for picture in (*train.pictures, *test.pictures):
        assert Image.open(picture.file).size == (48, 48)
        for box, area, mask in zip(picture.boxes, picture.areas, picture.masks, strict=True):
            rows, columns = np.nonzero(rle.decode(mask))
            assert len(rows) == area
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges
        both = sum(rle.decode(mask) for mask in picture.masks)
        assert both.max() == 1  # what is hidden behind another is not there
    again = demo(tmp_path / "again", 3, **options)[1]
    for one, other in zip(train.pictures, again.pictures, strict=True):
        assert one.file.read_bytes() == other.file.read_bytes()
    other = demo(tmp_path / "other", 4, **options)[1]
    assert train.pictures[0].file.read_bytes() != other.pictures[0].file.read_bytes()


def test_the_demo_needs_both_halves(tmp_path):
    with pytest.raises(UserError, match="for train and for test"):
        demo(tmp_path, 0, root="", images={"train": 1})
