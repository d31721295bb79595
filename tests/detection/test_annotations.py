import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from salmask.detection import annotations
from salmask.detection.annotations import coco, joined, voc
from salmask.errors import UserError

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def voc_object(name, *box, difficult=""):
    return f"<object><name>{name}</name>{difficult}{BOX.format(*box)}</object>"


@pytest.fixture
def voc_folder(tmp_path):
    """Write images of 40x30 px, given the objects of each."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / part).mkdir(parents=True)

    def write(**objects):
        for name, told in objects.items():
            size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
            text = f"<annotation>{size}{told}</annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
            Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "ImageSets/Main/test.txt").write_text("".join(f"{n}\n" for n in objects))
        return tmp_path

    return write


def test_voc_boxes_are_1_based_and_difficult_ones_are_ignored(voc_folder):
    folder = voc_folder(
        a=voc_object("dog", 1, 1, 40, 30)
        + voc_object("cat", 11, 6, 20, 15, difficult="<difficult>1</difficult>"),
        b="",
    )
    found = voc(folder, "test")
    assert found.rule == "voc" and found.skipped == () and not found.has_masks()
    first, second = found.pictures
    assert first.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert [found.classes[i] for i in first.labels] == ["dog", "cat"]
    assert first.ignored.tolist() == [False, True]
    assert first.areas.tolist() == [1200, 100]
    assert (first.height, first.width) == (30, 40)
    assert len(second) == 0 and second.boxes.shape == (0, 4)


def test_voc_lists_with_a_flag_and_other_classes(voc_folder):
    folder = voc_folder(a=voc_object("tree", 2, 2, 5, 5))
    (folder / "ImageSets/Main/test.txt").write_text("a -1\n\n")
    assert voc(folder, "test", ["tree"]).pictures[0].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (voc_object("dog", 30, 1, 20, 9), "(29, 0, 20, 9) of a dog is empty"),
        (voc_object("dog", 51, 1, 60, 9), "(50, 0, 60, 9) of a dog is outside the image"),
        (voc_object("unicorn", 1, 1, 9, 9), "`unicorn` is none of the 20 classes"),
    ],
)
def test_an_unusable_object_is_listed_and_skipped_or_refused(voc_folder, caplog, told, reason):
    folder = voc_folder(a=told + voc_object("cat", 1, 1, 9, 9))
    found = voc(folder, "test")
    assert len(found.pictures[0]) == 1
    assert reason in found.skipped[0] and "a.jpg" in found.skipped[0]
    assert reason in caplog.text
    with pytest.raises(UserError, match=r"a\.jpg"):
        voc(folder, "test", bad="stop")


def test_a_box_that_sticks_out_is_cut_and_listed(voc_folder):
    found = voc(voc_folder(a=voc_object("cat", 31, 21, 50, 31)), "test")
    assert found.pictures[0].boxes.tolist() == [[30, 20, 40, 30]]
    assert "was cut to the image" in found.skipped[0]
    just = voc(voc_folder(a=voc_object("cat", 31, 21, 41, 31)), "test")
    assert just.pictures[0].boxes.tolist() == [[30, 20, 40, 30]] and not just.skipped


def test_missing_and_broken_files_are_listed(voc_folder):
    folder = voc_folder(**dict.fromkeys("abcdefg", voc_object("cat", 1, 1, 9, 9)))
    (folder / "Annotations/a.xml").write_text("<annotation><size>")
    (folder / "Annotations/b.xml").unlink()
    (folder / "JPEGImages/c.jpg").unlink()
    (folder / "JPEGImages/d.jpg").write_bytes(b"\xff\xd8\xffno")
    Image.new("RGB", (41, 30)).save(folder / "JPEGImages/e.jpg")
    (folder / "Annotations/f.xml").write_text(
        "<annotation><size><width>40</width></size></annotation>"
    )
    found = voc(folder, "test")
    assert [picture.file.name for picture in found.pictures] == ["g.jpg"]
    reasons = dict(
        zip("abcdef", sorted(found.skipped, key=lambda s: s.split(".")[-2]), strict=True)
    )
    told = "\n".join(reasons.values())
    for reason in (
        "a.xml: no element found",
        "b.xml cannot be read: No such file",
        "c.jpg: ",
        "d.jpg: broken or truncated",
        "e.jpg: 41x30 px, annotated as 40x30",
        "f.xml: <size/height> is missing",
    ):
        assert reason in told


def test_a_split_that_is_not_there_or_empty(voc_folder):
    folder = voc_folder()
    with pytest.raises(UserError, match=r"val\.txt cannot be read: No such file"):
        voc(folder, "val")
    with pytest.raises(UserError, match="names no image"):
        voc(folder, "test")
    (folder / "ImageSets/Main/test.txt").write_text("gone\n")
    with pytest.raises(UserError, match=r"no image is usable(.|\n)*gone\.xml"):
        voc(folder, "test")


def test_years_are_joined(voc_folder):
    found = voc(voc_folder(a="", b=""), "test")
    assert [p.file.name for p in joined(found, found).pictures] == 2 * ["a.jpg", "b.jpg"]
    with pytest.raises(UserError, match="different classes"):
        joined(found, voc(voc_folder(a=""), "test", ["cat"]))


RUNS = [30 * 10, 30 * 5, 30 * 25]  # columns 10 to 15 of an image 40 wide and 30 high
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]


def entry(number, image, category, box, segmentation=None, **more):
    told = {"id": number, "image_id": image, "category_id": category, "bbox": box}
    return told | ({} if segmentation is None else {"segmentation": segmentation}) | more


@pytest.fixture
def coco_file(tmp_path):
    """Write instances.json with two images of 40x30 px, ids 900 and 17, and classes 44 and 7."""
    for name in ("x.png", "y.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)

    def write(*entries):
        images = [
            {"id": i, "file_name": f, "width": 40, "height": 30}
            for i, f in ((900, "x.png"), (17, "y.png"))
        ]
        categories = [{"id": 44, "name": "tree"}, {"id": 7, "name": "house"}]
        told = {"images": images, "categories": categories, "annotations": list(entries)}
        (tmp_path / "instances.json").write_text(json.dumps(told))
        return tmp_path / "instances.json"

    return write


def test_coco_boxes_crowds_and_masks_of_every_kind(coco_file, tmp_path):
    mask = rle.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))
    text = {"size": [30, 40], "counts": mask["counts"].decode()}
    file = coco_file(
        entry(5, 17, 44, [5, 5, 10, 10], SQUARE, area=99.5, iscrowd=0),
        entry(3, 17, 7, [10, 0, 5, 30], {"size": [30, 40], "counts": RUNS}, iscrowd=1),
        entry(4, 17, 7, [0, 0, 30, 30], text, iscrowd=0),
    )
    found = coco(file, tmp_path, masks=True)
    assert found.classes == ("house", "tree") and found.rule == "coco" and found.has_masks()
    empty, full = found.pictures
    assert len(empty) == 0 and empty.masks == ()
    assert full.boxes.tolist() == [[5, 5, 15, 15], [10, 0, 15, 30], [0, 0, 30, 30]]
    assert full.labels.tolist() == [1, 0, 0]
    assert full.ignored.tolist() == [False, True, False]
    assert full.areas.tolist() == [99.5, 150, 30]
    square, columns, diagonal = (rle.decode(m).astype(bool) for m in full.masks)
    assert square[5:15, 5:15].all() and square.sum() == 100
    assert columns[:, 10:15].all() and columns.sum() == 150
    assert (diagonal == np.eye(30, 40)).all()
    boxes_only = coco(file, tmp_path).pictures[1]
    assert boxes_only.masks is None
    assert boxes_only.areas.tolist() == [99.5, 150, 900]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (entry(8, 5, 44, [1, 1, 5, 5], SQUARE), "annotation 8: 5 is not there"),
        (entry(8, 17, 45, [1, 1, 5, 5], SQUARE), "annotation 8: 45 is not there"),
        (entry(8, 17, 44, [1, 1, 5], SQUARE), "annotation 8: not enough values"),
        (entry(8, 17, 44, [1, 1, 5, 5]), "annotation 8: 'segmentation' is not there"),
        (entry(8, 17, 44, [1, 1, 5, 5], [[1, 1, 5, 5]]), "fewer than 3 points"),
        (entry(8, 17, 44, [1, 1, 5, 5], []), "holds no polygon"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [9, 9], "counts": [81]}), "its mask is of size"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": [81]}), "do not add up"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": [-5, 1205]}), "do not add up"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": 7}), "annotation 8"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": "000"}), "do not add up"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": "~"}), "no compressed text"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": "PP"}), "is cut off"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"counts": "0"}), "'size' is not there"),
        (entry(8, 17, 44, [1, 1, 5, 5], [[1e9, 1, 5, 5, 1, 9]]), "far from the image"),
        (entry(8, 17, 44, [1, 1, 5, 5], [[1, 1, 5, float("nan"), 1, 9]]), "far from the image"),
        (entry(8, 17, 44, [1, 1, 5, 5], [["a", 1, 5, 5, 1, 9]]), "could not convert"),
        (entry(8, 17, 44, None, SQUARE), "annotation 8"),
        (entry(8, 17, 44, [1, 1, 0, 5], SQUARE), "(1, 1, 1, 6) of a tree is empty"),
        (entry(8, 17, 44, [1, 1, float("nan"), 5], SQUARE), "is not in numbers"),
    ],
)
def test_a_wrong_object_is_listed_and_skipped(coco_file, tmp_path, wrong, reason):
    file = coco_file(wrong, entry(9, 17, 44, [5, 5, 10, 10], SQUARE))
    found = coco(file, tmp_path, masks=True)
    assert len(found.skipped) == 1 and reason in found.skipped[0]
    assert found.pictures[1].boxes.tolist() == [[5, 5, 15, 15]]
    assert len(found.pictures[1].masks) == 1
    with pytest.raises(UserError, match="there are problems in"):
        coco(file, tmp_path, masks=True, bad="stop")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_compressed_text_is_read_as_cocos_own_code_does(height, width, seed, share):
    drawn = np.random.default_rng(seed).random((height, width)) < share
    wanted = rle.encode(np.asfortranarray(drawn, dtype=np.uint8))
    told = {"size": [height, width], "counts": wanted["counts"].decode()}
    assert annotations._mask(told, height, width) == wanted


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(
        ["id", "image_id", "bbox", "size", "counts", "name", "file_name", "height", "width"]
    ), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.sampled_from(["images", "annotations", "categories"]), st.data())
def test_whatever_stands_in_a_file_is_used_or_told(tmp_path_factory, part, data):
    """Anything at any place of a sound file: never another error, never a mask of another size."""
    folder = tmp_path_factory.mktemp("odd")
    Image.new("RGB", (40, 30)).save(folder / "y.png")
    told = {
        "images": [{"id": 17, "file_name": "y.png", "width": 40, "height": 30}],
        "categories": [{"id": 44, "name": "tree"}],
        "annotations": [entry(1, 17, 44, [5, 5, 10, 10], SQUARE, area=3.0, iscrowd=0)],
    }
    key = data.draw(st.sampled_from([None, *told[part][0]]))
    if key is None:
        told[part] = data.draw(ODD)
    else:
        told[part][0][key] = data.draw(ODD)
    (folder / "odd.json").write_text(json.dumps(told))
    try:
        found = coco(folder / "odd.json", folder, masks=True)
    except UserError:
        return
    for mask in (mask for picture in found.pictures for mask in picture.masks):
        assert rle.decode(mask).shape == (30, 40)


def test_a_missing_image_is_listed_and_a_long_list_is_cut(coco_file, tmp_path):
    file = coco_file(*[entry(i, 17, 44, [50, 50, 5, 5]) for i in range(12)])
    (tmp_path / "x.png").unlink()
    found = coco(file, tmp_path)
    assert [p.file.name for p in found.pictures] == ["y.png"]
    assert len(found.skipped) == 13
    with pytest.raises(UserError, match="and 3 more"):
        coco(file, tmp_path, bad="stop")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is not in COCO's format"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, '
            '{"id": 2, "name": "a"}]}',
            "several categories have one name",
        ),
        ("[]", "is not in COCO's format"),
        ('{"images": [], "annotations": []}', "'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "no image is usable"),
    ],
)
def test_what_is_no_coco_file_is_told(tmp_path, text, reason):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        coco(tmp_path / "odd.json", tmp_path)
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        coco(tmp_path / "none.json", tmp_path)


def test_the_classes_of_voc_are_twenty():
    assert len(set(annotations.VOC_CLASSES)) == 20
