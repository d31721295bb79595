import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from salmask.detection.datasets.voc import VOC_CLASSES, read, read_split
from salmask.errors import UserError

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def voc_object(name, *box, difficult=""):
    return f"<object><name>{name}</name>{difficult}{BOX.format(*box)}</object>"


@pytest.fixture
def voc_folder(tmp_path):
    """A function that writes images of 40x30 px, given the XML of their objects."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / part).mkdir(parents=True)

    def write(**objects):
        for name, xml in objects.items():
            size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
            text = f"<annotation>{size}{xml}</annotation>"
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
    annotations = read_split(folder, "test")
    assert annotations.rule == "voc" and annotations.skipped == () and not annotations.has_masks()
    first, second = annotations.images
    assert first.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert [annotations.classes[i] for i in first.labels] == ["dog", "cat"]
    assert first.ignored.tolist() == [False, True]
    assert first.areas.tolist() == [1200, 100]
    assert (first.height, first.width) == (30, 40)
    assert len(second) == 0 and second.boxes.shape == (0, 4)


def test_voc_lists_with_a_flag_and_other_classes(voc_folder):
    folder = voc_folder(a=voc_object("tree", 2, 2, 5, 5))
    (folder / "ImageSets/Main/test.txt").write_text("a -1\n\n")
    assert read_split(folder, "test", ["tree"]).images[0].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (voc_object("dog", 30, 1, 20, 9), "(29, 0, 20, 9) of a dog is empty"),
        (voc_object("dog", 51, 1, 60, 9), "(50, 0, 60, 9) of a dog is outside the image"),
        (voc_object("unicorn", 1, 1, 9, 9), "`unicorn` is not one of the 20 classes"),
    ],
)
def test_an_unusable_object_is_listed_and_skipped_or_refused(voc_folder, caplog, wrong, reason):
    folder = voc_folder(a=wrong + voc_object("cat", 1, 1, 9, 9))
    annotations = read_split(folder, "test")
    assert len(annotations.images[0]) == 1
    assert reason in annotations.skipped[0] and "a.jpg" in annotations.skipped[0]
    assert reason in caplog.text
    with pytest.raises(UserError, match=r"a\.jpg"):
        read_split(folder, "test", bad="stop")


def test_a_box_that_extends_beyond_the_image_is_clipped_and_listed(voc_folder):
    annotations = read_split(voc_folder(a=voc_object("cat", 31, 21, 50, 31)), "test")
    assert annotations.images[0].boxes.tolist() == [[30, 20, 40, 30]]
    assert "was clipped to the image" in annotations.skipped[0]
    by_one_pixel = read_split(voc_folder(a=voc_object("cat", 31, 21, 41, 31)), "test")
    assert by_one_pixel.images[0].boxes.tolist() == [[30, 20, 40, 30]]
    assert not by_one_pixel.skipped


def test_missing_and_broken_files_are_listed(voc_folder):
    folder = voc_folder(**dict.fromkeys("abcdefgh", voc_object("cat", 1, 1, 9, 9)))
    (folder / "Annotations/a.xml").write_text("<annotation><size>")
    (folder / "Annotations/b.xml").unlink()
    (folder / "JPEGImages/c.jpg").unlink()
    (folder / "JPEGImages/d.jpg").write_bytes(b"\xff\xd8\xffno")
    Image.new("RGB", (41, 30)).save(folder / "JPEGImages/e.jpg")
    (folder / "Annotations/f.xml").write_text(
        "<annotation><size><width>40</width></size></annotation>"
    )
    (folder / "Annotations/h.xml").write_text(
        "<annotation><size><height>30</height><width>x</width></size></annotation>"
    )
    annotations = read_split(folder, "test")
    assert [image.file.name for image in annotations.images] == ["g.jpg"]
    assert len(annotations.skipped) == 7
    skipped = "\n".join(annotations.skipped)
    for reason in (
        "a.xml: no element found",
        "b.xml cannot be read: no such file",
        "c.jpg: ",
        "d.jpg: broken or truncated",
        "e.jpg: 41x30 px, but annotated as 40x30",
        "f.xml: <size/height> is missing",
        "h.xml: <size/width> is 'x', which is not a number",
    ):
        assert reason in skipped


def test_a_missing_or_empty_split_is_refused(voc_folder):
    folder = voc_folder()
    with pytest.raises(UserError, match=r"val\.txt cannot be read: no such file"):
        read_split(folder, "val")
    with pytest.raises(UserError, match="lists no image"):
        read_split(folder, "test")
    (folder / "ImageSets/Main/test.txt").write_text("gone\n")
    with pytest.raises(UserError, match=r"no usable image in (.|\n)*gone\.xml"):
        read_split(folder, "test")


def write_year(root, year, **lists):
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


def names(annotations):
    return [image.file.name for image in annotations.images]


def test_voc_is_2007_and_2012_for_training_and_2007_for_testing(tmp_path):
    write_year(tmp_path, 2007, trainval=["a", "b", "a"], test=["c"])
    write_year(tmp_path, 2012, trainval=["d"])
    root, train, test = read(tmp_path, 0, root=tmp_path)
    assert root == tmp_path
    assert (names(train), names(test)) == (["a.jpg", "b.jpg", "d.jpg"], ["c.jpg"])
    assert train.rule == test.rule == "voc" and len(train.classes) == 20


def test_voc_of_one_folder_with_classes_of_its_own(tmp_path):
    folder = write_year(tmp_path, 1, trainval=["a"], test=["c"])
    _, train, test = read(
        tmp_path, 0, root=folder, train=("trainval",), test=("test",), classes=("dog", "cat")
    )
    assert (names(train), names(test)) == (["a.jpg"], ["c.jpg"])
    assert train.images[0].labels.tolist() == [1]


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "a/../../b"])
def test_files_outside_root_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="leads out of"):
        read(tmp_path, 0, root=tmp_path, train=(name,))


def test_there_are_twenty_classes():
    assert len(set(VOC_CLASSES)) == 20


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".PNG", ".bmp", ".webp"])
def test_names_with_spaces_and_other_suffixes(tmp_path, suffix):
    names = ["photo", "photo (1)", "IMG 1", "IMG 2", "a.b", "ä"]
    folder = write_year(tmp_path, 1, test=names)
    for name in names:
        with Image.open(folder / f"JPEGImages/{name}.jpg") as image:
            image.save(folder / f"JPEGImages/x{suffix}")
        (folder / f"JPEGImages/{name}.jpg").unlink()
        (folder / f"JPEGImages/x{suffix}").rename(folder / f"JPEGImages/{name}{suffix}")
    annotations = read_split(folder, "test")
    assert [image.file.stem for image in annotations.images] == names and not annotations.skipped


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("IMG 1 -1\nIMG 2  1\na  0\n", "utf-8"),
        ("IMG 1\r\nIMG 2\r\na\r\n", "utf-8-sig"),
        ("IMG 1\r\nIMG 2\r\na\r\n", "utf-16"),
        ('"IMG 1.jpg"\n./IMG 2.jpg\nJPEGImages\\a.xml\n', "utf-8"),
        ("IMG 1\n\nIMG 1\n  IMG 2\t\na", "utf-8"),
    ],
)
def test_lists_of_other_programs(tmp_path, text, encoding):
    folder = write_year(tmp_path, 1, test=["IMG 1", "IMG 2", "a"])
    (folder / "ImageSets/Main/test.txt").write_bytes(text.encode(encoding))
    assert names(read_split(folder, "test")) == ["IMG 1.jpg", "IMG 2.jpg", "a.jpg"]


def test_a_list_that_leads_out_is_refused(voc_folder):
    folder = voc_folder(a="")
    (folder / "ImageSets/Main/test.txt").write_text("a\n../../b\n")
    with pytest.raises(UserError, match=r"test\.txt, line 2: \.\./\.\./b leads out of"):
        read_split(folder, "test")


def test_xml_may_declare_its_encoding_and_counts_are_noted(voc_folder):
    folder = voc_folder(a=voc_object("cat", 1, 1, 9, 9), b=voc_object("dog", 1, 1, 9, 9))
    xml = (folder / "Annotations/a.xml").read_text().replace("cat", "k\xe4fer")
    declared = "<?xml version='1.0' encoding='iso-8859-1'?>" + xml
    (folder / "Annotations/a.xml").write_bytes(declared.encode("iso-8859-1"))
    annotations = read_split(folder, "test", ("k\xe4fer",))
    assert len(annotations.images[0]) == 1
    assert annotations.notes == ("test.txt: 0 of 2 images and 1 of 2 objects were left out",)


def mutated(draw, content):
    """Bytes with a part removed, repeated or replaced."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, len(content)))
    middle = draw(st.sampled_from([b"", content[start:stop] * 2]) | st.binary(max_size=9))
    return content[:start] + middle + content[stop:]


@given(st.data())
def test_any_file_is_read_or_refused(tmp_path_factory, data):
    folder = write_year(tmp_path_factory.mktemp("odd"), 1, test=["IMG 1", "b"])
    name = data.draw(st.sampled_from(["Annotations/b.xml", "ImageSets/Main/test.txt"]))
    (folder / name).write_bytes(mutated(data.draw, (folder / name).read_bytes()))
    named = (folder / "ImageSets/Main/test.txt").read_bytes()
    described = (folder / "Annotations/b.xml").read_bytes().count(b"<object>")
    try:
        annotations = read_split(folder, "test", bad="skip")
    except UserError:
        return
    lost = 1 + described - sum(map(len, annotations.images))
    assert lost <= 0 or annotations.skipped or named != b"IMG 1\nb"
