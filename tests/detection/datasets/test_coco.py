import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from salmask.datasets.folder_fingerprint import write_fingerprint
from salmask.detection import rle
from salmask.detection.datasets.coco import read, read_file
from salmask.errors import UserError

RUNS = [30 * 10, 30 * 5, 30 * 25]  # columns 10 to 15 of an image 40 wide and 30 high
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]


def entry(number, image, category, box, segmentation=None, **more):
    made = {"id": number, "image_id": image, "category_id": category, "bbox": box}
    return made | ({} if segmentation is None else {"segmentation": segmentation}) | more


@pytest.fixture
def coco_file(tmp_path):
    """A function that writes instances.json with two images of 40x30 px and two classes."""
    for name in ("x.png", "y.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)

    def write(*entries):
        images = [
            {"id": i, "file_name": f, "width": 40, "height": 30}
            for i, f in ((900, "x.png"), (17, "y.png"))
        ]
        categories = [{"id": 44, "name": "tree"}, {"id": 7, "name": "house"}]
        content = {"images": images, "categories": categories, "annotations": list(entries)}
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return tmp_path / "instances.json"

    return write


def test_coco_boxes_crowds_and_masks_of_every_kind(coco_file, tmp_path):
    (mask,) = rle.encode(np.eye(30, 40)[None] > 0)
    text = {"size": [30, 40], "counts": mask["counts"].decode()}
    file = coco_file(
        entry(5, 17, 44, [5, 5, 10, 10], SQUARE, area=99.5, iscrowd=0),
        entry(3, 17, 7, [10, 0, 5, 30], {"size": [30, 40], "counts": RUNS}, iscrowd=1),
        entry(4, 17, 7, [0, 0, 30, 30], text, iscrowd=0),
    )
    annotations = read_file(file, tmp_path, masks=True)
    assert (
        annotations.classes == ("house", "tree")
        and annotations.rule == "coco"
        and annotations.has_masks()
    )
    empty, full = annotations.images
    assert len(empty) == 0 and empty.masks == ()
    assert full.boxes.tolist() == [[5, 5, 15, 15], [10, 0, 15, 30], [0, 0, 30, 30]]
    assert full.labels.tolist() == [1, 0, 0]
    assert full.ignored.tolist() == [False, True, False]
    assert full.areas.tolist() == [99.5, 150, 30]
    square, columns, diagonal = rle.decode(full.masks).astype(bool)
    assert square[5:15, 5:15].all() and square.sum() == 100
    assert columns[:, 10:15].all() and columns.sum() == 150
    assert (diagonal == np.eye(30, 40)).all()
    boxes_only = read_file(file, tmp_path).images[1]
    assert boxes_only.masks is None
    assert boxes_only.areas.tolist() == [99.5, 150, 900]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            entry(8, 5, 44, [1, 1, 5, 5], SQUARE),
            "annotation 8: there is no image of its image_id 5",
        ),
        (
            entry(8, 17, 45, [1, 1, 5, 5], SQUARE),
            "annotation 8: there is no category of its category_id 45",
        ),
        (entry(8, 17, 44, [1, 1, 5], SQUARE), "8: its bbox [1, 1, 5] is not a list of four"),
        (entry(8, 17, 44, "1234", SQUARE), "8: its bbox 1234 is not a list of four numbers"),
        (entry(8, 17, 44, [1, 1, 5, None], SQUARE), "8: its bbox [1, 1, 5, None] is not a list"),
        (entry(8, 17, 44, [1, 1, 5, 5]), "annotation 8: 'segmentation' is missing"),
        (entry(8, 17, 44, [1, 1, 5, 5], [[1, 1, 5, 5]]), "fewer than 3 points"),
        (entry(8, 17, 44, [1, 1, 5, 5], []), "has no polygon"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [9, 9], "counts": [81]}), "the mask has size"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": [81]}), "do not add up"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": [-5, 1205]}), "do not add up"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": 7}), "annotation 8"),
        (entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": "000"}), "do not add up"),
        (
            entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": "~"}),
            "are not COCO's compressed text",
        ),
        (
            entry(8, 17, 44, [1, 1, 5, 5], {"size": [30, 40], "counts": "PP"}),
            "in the middle of a number",
        ),
        (entry(8, 17, 44, [1, 1, 5, 5], {"counts": "0"}), "'size' is missing"),
        (entry(8, 17, 44, [1, 1, 5, 5], [[1e9, 1, 5, 5, 1, 9]]), "far outside the image"),
        (entry(8, 17, 44, [1, 1, 5, 5], [[1, 1, 5, float("nan"), 1, 9]]), "far outside the image"),
        (entry(8, 17, 44, [1, 1, 5, 5], [["a", 1, 5, 5, 1, 9]]), "could not convert"),
        (entry(8, 17, 44, None, SQUARE), "annotation 8"),
        (entry(8, 17, 44, [1, 1, 0, 5], SQUARE), "(1, 1, 1, 6) of a tree is empty"),
        (entry(8, 17, 44, [1, 1, float("nan"), 5], SQUARE), "is not finite"),
    ],
)
def test_a_wrong_object_is_listed_and_skipped(coco_file, tmp_path, wrong, reason):
    file = coco_file(wrong, entry(9, 17, 44, [5, 5, 10, 10], SQUARE))
    annotations = read_file(file, tmp_path, masks=True)
    assert len(annotations.skipped) == 1 and reason in annotations.skipped[0]
    assert annotations.images[1].boxes.tolist() == [[5, 5, 15, 15]]
    assert len(annotations.images[1].masks) == 1
    with pytest.raises(UserError, match="1 problems in"):
        read_file(file, tmp_path, masks=True, bad="stop")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(
        ["id", "image_id", "bbox", "size", "counts", "name", "file_name", "height", "width"]
    ), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.sampled_from(["images", "annotations", "categories"]), st.data())
def test_any_value_in_a_file_is_used_or_refused(tmp_path_factory, part, data):
    """Any value at any place of a valid file causes no other error and no mask of another size."""
    folder = tmp_path_factory.mktemp("odd")
    Image.new("RGB", (40, 30)).save(folder / "y.png")
    content = {
        "images": [{"id": 17, "file_name": "y.png", "width": 40, "height": 30}],
        "categories": [{"id": 44, "name": "tree"}],
        "annotations": [entry(1, 17, 44, [5, 5, 10, 10], SQUARE, area=3.0, iscrowd=0)],
    }
    key = data.draw(st.sampled_from([None, *content[part][0]]))
    if key is None:
        content[part] = data.draw(ANY_JSON)
    else:
        content[part][0][key] = data.draw(ANY_JSON)
    (folder / "odd.json").write_text(json.dumps(content))
    try:
        annotations = read_file(folder / "odd.json", folder, masks=True)
    except UserError:
        return
    for mask in (mask for image in annotations.images for mask in image.masks):
        assert rle.decode([mask]).shape == (1, 30, 40)


def test_a_missing_image_is_listed_and_a_long_list_is_cut(coco_file, tmp_path):
    file = coco_file(*[entry(i, 17, 44, [50, 50, 5, 5]) for i in range(12)])
    (tmp_path / "x.png").unlink()
    annotations = read_file(file, tmp_path)
    assert [p.file.name for p in annotations.images] == ["y.png"]
    assert len(annotations.skipped) == 13
    with pytest.raises(UserError, match="and 3 more"):
        read_file(file, tmp_path, bad="stop")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not in COCO's format"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, '
            '{"id": 2, "name": "a"}]}',
            "several categories have the same name",
        ),
        ("[]", "is not in COCO's format"),
        ('{"images": [], "annotations": []}', "'categories'"),
        ('{"images": [], "categories": []}', "'annotations' is missing; a file without them"),
        ('{"images": [], "annotations": [], "categories": []}', "no usable image in"),
    ],
)
def test_files_in_another_format_are_refused(tmp_path, text, reason):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_file(tmp_path / "odd.json", tmp_path)
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        read_file(tmp_path / "none.json", tmp_path)


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
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "all.json").write_text(json.dumps(content))
    return content


ONE_FILE = {"train": "all.json", "train_images": "images"}


def names(annotations):
    return [image.file.name for image in annotations.images]


def test_one_coco_file_can_be_split_by_the_seed(tmp_path):
    coco_folder(tmp_path)
    options = ONE_FILE | {"root": tmp_path, "test": None, "test_share": 0.3}
    _, train, test = read(tmp_path, 0, **options)
    assert sorted(names(train) + names(test)) == [f"{i:02d}.png" for i in range(20)]
    assert 2 <= len(test.images) <= 10 and train.has_masks() and test.has_masks()
    assert names(read(tmp_path, 0, **options)[2]) == names(test)
    assert names(read(tmp_path, 1, **options)[2]) != names(test)
    more = read(tmp_path, 0, **(options | {"test_share": 0.6}))[2]
    assert set(names(test)) < set(names(more))  # a smaller share is part of a larger one
    with pytest.raises(UserError, match="test_share 0 of 20 images leaves no image"):
        read(tmp_path, 0, **(options | {"test_share": 0.0}))


def test_masks_are_read_where_nearly_every_object_has_one(tmp_path):
    content = coco_folder(tmp_path)
    both = ONE_FILE | {"root": tmp_path, "test": "all.json", "test_images": "images"}
    _, train, test = read(tmp_path, 0, **both)
    assert train.has_masks() and names(train) == names(test)
    assert not read(tmp_path, 0, **both, masks=False)[1].has_masks()
    del content["annotations"][3]["segmentation"]
    (tmp_path / "all.json").write_text(json.dumps(content))
    most = read(tmp_path, 0, **both)[1]  # 18 of 19 have one
    assert most.has_masks() and sum(map(len, most.images)) == 18 and len(most.skipped) == 1
    assert most.notes == ("all.json: 0 of 20 images and 1 of 19 objects were left out",)
    for entry in content["annotations"][:3]:
        entry["segmentation"] = []
    (tmp_path / "all.json").write_text(json.dumps(content))
    plain = read(tmp_path, 0, **both)[1]
    assert not plain.has_masks() and sum(map(len, plain.images)) == 19
    assert "masks are not read, because only 15 of 19 objects have one" in plain.notes[0]
    with_masks = read(tmp_path, 0, **both, masks=True)[1]
    assert with_masks.has_masks() and sum(map(len, with_masks.images)) == 15


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.json", "a/../../b.json"])
def test_files_outside_root_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="leads out of"):
        read(tmp_path, 0, root=tmp_path, train=name)


def test_root_may_be_a_fingerprint_file_and_must_exist(tmp_path):
    coco_folder(tmp_path / "data")
    write_fingerprint(tmp_path / "data", tmp_path / "folder.json")
    options = ONE_FILE | {"test": None}
    root, train, _ = read(tmp_path, 0, root=tmp_path / "folder.json", **options)
    assert root == tmp_path / "data" and train.images
    with pytest.raises(UserError, match=r"^root: .*nowhere is neither a folder nor"):
        read(tmp_path, 0, root=tmp_path / "nowhere", **options)


def test_ids_may_be_texts_and_the_file_may_have_a_byte_order_mark(coco_file, tmp_path):
    file = coco_file(entry("5", "17", "44", [5, 5, 10, 10]), entry(6, 17.0, 7, [0, 0, 9, 9]))
    expected = [[5, 5, 15, 15], [0, 0, 9, 9]]
    text = file.read_text()
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes(text.encode(encoding))
        annotations = read_file(file, tmp_path)
        assert annotations.images[1].boxes.tolist() == expected and not annotations.skipped
    file.write_bytes(b"\xff" + text.encode())
    with pytest.raises(UserError, match="not UTF-8"):
        read_file(file, tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", {"id": "17"}, r"1 of 2 images have the id of an earlier one .*x\.png.*y\.png"),
        ("images", {"file_name": "y.png"}, r"1 of 2 images have the file of an earlier one"),
        ("categories", {"id": 7}, r"1 of 2 categories have the id .*tree.*house"),
        ("images", {"file_name": "../x.png"}, r"image 900: \.\./x\.png leads out of"),
        (
            "images",
            {"file_name": "C:\\a\\y.png"},
            r"y\.png and C:.* are both .*y\.png here|are both",
        ),
    ],
)
def test_joined_files_with_colliding_entries_are_refused(
    coco_file, tmp_path, part, change, message
):
    file = coco_file(entry(1, 17, 44, [1, 1, 5, 5]))
    content = json.loads(file.read_text())
    content[part][0] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_file(file, tmp_path)


@pytest.mark.parametrize(
    "name", ["sub\\x.png", "/home/me/data/sub/x.png", "D:\\data\\sub\\x.png", "./sub/x.png"]
)
def test_names_of_another_system_are_read_as_meant(coco_file, tmp_path, name):
    file = coco_file(entry(1, 900, 44, [1, 1, 5, 5]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.png").rename(tmp_path / "sub" / "x.png")
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    annotations = read_file(file, tmp_path)
    assert [image.file.name for image in annotations.images] == ["x.png", "y.png"]
    assert len(annotations.images[0]) == 1 and not annotations.skipped
    moved = [note for note in annotations.notes if "1 of 2 file names are those of another" in note]
    assert len(moved) == (name[0] != ".")


def test_classes_without_objects_are_noted(coco_file, tmp_path):
    annotations = read_file(coco_file(entry(1, 17, 44, [1, 1, 5, 5])), tmp_path)
    assert annotations.notes == ("instances.json: classes without an object: house",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_read_upright_or_listed(tmp_path, orientation):
    """40x30 stored pixels, which half of the orientations show as 30x40."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "x.jpg", exif=exif.tobytes())

    def annotated(width, height):
        image = {"id": 1, "file_name": "x.jpg", "width": width, "height": height}
        content = {
            "images": [image, image | {"id": 2, "file_name": "y.png"}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [entry(1, 1, 1, [0, 0, 20, 10]), entry(2, 2, 1, [0, 0, 20, 10])],
        }
        Image.new("RGB", (width, height)).save(tmp_path / "y.png")
        (tmp_path / "a.json").write_text(json.dumps(content))
        return read_file(tmp_path / "a.json", tmp_path)

    stored, turned = annotated(40, 30), annotated(30, 40)
    sideways = orientation > 4
    assert len((turned if sideways else stored).images) == 2
    refused = stored if sideways else turned
    assert [image.file.name for image in refused.images] == ["y.png"]
    (reason,) = refused.skipped
    assert ("EXIF data turn it" if sideways else "but annotated as") in reason
    noted = [note for note in stored.notes if "EXIF data turn or mirror 1 images" in note]
    assert len(noted) == (orientation in (2, 3, 4))
