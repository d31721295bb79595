"""Folders with given splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmask.datasets import splits
from salmask.errors import UserError
from tests.helpers.trees import files_by_split, make_images, read_dataset


def test_splits_by_folders(tmp_path):
    root = tmp_path / "root"
    make_images(root, "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "test/a/4.jpg", "test/5.jpg")
    assert files_by_split(read_dataset(tmp_path, "splits")) == {
        "train": [("train/a/1.jpg", "a"), ("train/b/2.jpg", "b")],
        "val": [("val/b/3.jpg", "b")],
        "test": [("test/5.jpg", ""), ("test/a/4.jpg", "a")],
    }


def test_splits_by_lists(tmp_path):
    root = tmp_path / "root"
    make_images(root, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "c/5.jpg")
    (root / "train.txt").write_text("b/3.jpg\na/1.jpg\n\n")
    (root / "held.txt").write_text("a/2.jpg\n")
    listing = read_dataset(tmp_path, "splits", test="held.txt")
    assert files_by_split(listing) == {
        "train": [("b/3.jpg", "b"), ("a/1.jpg", "a")],
        "test": [("a/2.jpg", "a")],
    }
    assert listing.classes == ("a", "b")  # a folder that no list names is not a class


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ({"train": "a/1.jpg"}, {}, "neither a folder test nor a list test or test.txt"),
        ({"train": "a/1.jpg", "test": "a/2.jpg"}, {"val": "dev"}, "neither a folder dev nor"),
        ({"train": "a/1.jpg", "test": "a/1.jpg"}, {}, "a/1.jpg is in train and in test"),
        ({"train": "", "test": ""}, {}, "no images in class folders"),
    ],
)
def test_inconsistent_splits_are_errors(tmp_path, lists, options, message):
    make_images(tmp_path / "root", "a/1.jpg", "a/2.jpg")
    for name, text in lists.items():
        (tmp_path / "root" / f"{name}.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "splits", **options)


@pytest.mark.parametrize(
    "content",
    [
        b"./cat/a b.png\n./dog/2.png\n",
        b"\xef\xbb\xbfcat/a b.png\r\ndog/2.png\r\n",
        "cat/a b.png\ndog/2.png\n".encode("utf-16"),
        b'"cat/a b.png",0\n"dog/2.png",1\n',
        b"cat\\a b.png\tcat\ndog\\2.png\tdog",
        b"ROOT/cat/a b.png\nROOT/dog/2.png\n",
    ],
)
def test_lists_of_other_programs(tmp_path, content):
    for name in ("cat/a b.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "train.txt").write_bytes(content.replace(b"ROOT", bytes(tmp_path)))
    (tmp_path / "test.txt").write_text("")
    listing = splits.read(tmp_path, 0, root=tmp_path)
    assert listing.classes == ("cat", "dog")
    assert [file.path for file in listing.files] == ["cat/a b.png", "dog/2.png"]


@pytest.mark.parametrize("line", ["../x.png", "/etc/x.png", "..\\x.png,1"])
def test_a_list_may_not_lead_out_of_the_root(tmp_path, line):
    (tmp_path / "x.png").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "train.txt").write_text(f"cat/1.png\n{line}\n")
    with pytest.raises(UserError, match=r"train\.txt, line 2: .* leads out of"):
        splits.read(tmp_path, 0, root=root)


LINES = st.lists(
    st.sampled_from(
        [b"cat/1.png", b"dog/2.png", b'"cat/1.png"', b"dog\\2.png", b"./cat/1.png", b"cat/gone.png"]
    )
    | st.binary(max_size=20),
    max_size=5,
)


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\0\n"]), st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_any_list_is_read_or_refused(tmp_path_factory, lines, end, mark):
    """A listed image is read, or its path is in the listing, where `prepare` rejects it."""
    folder = tmp_path_factory.mktemp("lists")
    make_images(folder / "root", "cat/1.png", "dog/2.png", "test/cat/3.png")
    (folder / "root" / "train.txt").write_bytes(mark + end.join(lines))
    try:
        listing = read_dataset(folder, "splits")
    except UserError:
        return
    paths = {file.path for file in listing.files if file.split == "train"}
    for line in lines:
        for name in ("cat/1.png", "dog/2.png"):
            if line.replace(b"\\", b"/").strip(b'"./') == name.encode():
                assert name in paths


@pytest.mark.parametrize("name", ["../other", "/etc", "a/../../b", "C:\\b", "..\\b"])
def test_splits_outside_root_are_refused(tmp_path, name):
    make_images(tmp_path / "root", "train/a/1.png", "test/a/2.png")
    make_images(tmp_path, "other/a/1.png")
    for option in ("train", "val", "test"):
        with pytest.raises(UserError, match=f"{option}: .* leads out of"):
            read_dataset(tmp_path, "splits", **{option: name})
