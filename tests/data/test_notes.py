"""Notes about duplicates, leaks, classes and labels."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from salmask.data import manifest
from salmask.data.notes import first_with_same_content, notes_on
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing, imagefolder


def notes(labels, splits, contents=None, classes="abcdefgh", empty=()) -> list[str]:
    """The notes on images of these labels, splits and contents (one letter each, by default all
    different)."""
    contents = contents or [chr(200 + index) for index in range(len(labels))]
    digests = b"".join(content.encode("utf-32-le") * 8 for content in contents)
    same_as = first_with_same_content(digests)
    return notes_on(
        tuple(classes), np.array(labels), np.array(splits, dtype=object), same_as, empty
    )


COPIES = (
    "duplicate content: {} images have the bytes of an earlier one; all are kept, see "
    "duplicates.csv"
)
TWO, SPLIT = [0, 1, 0, 1], ["train", "train", "val", "val"]


def test_a_sound_set_has_no_notes():
    assert notes(TWO, SPLIT, classes="ab") == []


def test_the_first_row_of_the_same_content():
    contents = [b"a" * 32, b"b" * 32, b"a" * 32, b"a" * 31 + b"\0", b"b" * 32]
    assert first_with_same_content(b"".join(contents)).tolist() == [0, 1, 0, 3, 1]


def test_copies_and_leaks_are_counted():
    splits = ["train", "train", "train", "val", "val", "test"]
    assert notes([0, 1, 1, 0, 1, 1], splits, "xxyxxz", "ab") == [
        COPIES.format("3 of 6"),
        "leak: 2 of 2 images of val are also in train; its scores will be too high",
        "classes of train without images in test: a",
    ]


def test_a_copy_within_validation_is_no_leak():
    assert notes(TWO, SPLIT, "xyzz", "ab") == [COPIES.format("1 of 4")]


def test_classes_of_one_split_only_are_named_at_most_five_of_them():
    labels = [0, 1, 2, 3, 4, 5, 6, 0, 7]
    assert notes(labels, ["train"] * 7 + ["val"] * 2) == [
        "classes of train without images in val: b, c, d, e, f and 1 more",
        "classes of val without images in train: h",
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([-1, -1, -1, -1], "", ["no labels: evaluations that need them are left out"]),
        ([0, 0, 0, 0], "a", ["only one class, a: evaluations of labels are left out"]),
        ([0, 0, -1, -1], "a", ["only one class, a: evaluations of labels are left out"]),
        ([0, 1, 0, 1], "abc", ["classes without a usable image: c"]),
    ],
)
def test_missing_labels_and_classes(labels, classes, expected):
    assert notes(labels, SPLIT, classes=classes) == expected


def test_empty_folders_are_named():
    assert notes(TWO, SPLIT, classes="ab", empty=["x", "y"]) == [
        "folders without images, which make no class: x, y"
    ]


# -------------------------------------------------------------------- from files to dataset.json


def prepared(root, folder) -> tuple[dict, list[dict[str, str]]]:
    """The contents of dataset.json and duplicates.csv of a folder of images."""
    write_manifest(imagefolder.read(folder, 0, root=root), "x", folder, 0)
    with (folder / "duplicates.csv").open(newline="") as stream:
        return json.loads((folder / "dataset.json").read_text()), list(csv.DictReader(stream))


def test_a_folder_with_every_problem_is_accepted_with_notes(tmp_path):
    root = tmp_path / "photos"
    for index, name in enumerate(["train/a/1", "train/a/2", "train/b/3", "val/a/4", "val/c/5"]):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (index, 0, 0)).save(path)
    (root / "val/a/6.png").write_bytes((root / "train/b/3.png").read_bytes())
    (root / "train/nothing").mkdir()
    (root / "val/text").mkdir()
    (root / "val/text/notes.txt").write_text("no image")
    dataset, pairs = prepared(root, tmp_path / "data")
    assert dataset["notes"] == [
        COPIES.format("1 of 6"),
        "leak: 1 of 3 images of val are also in train; its scores will be too high",
        "classes of train without images in val: b",
        "classes of val without images in train: c",
        "folders without images, which make no class: train/nothing, val/text",
        "not read, because of their names: 1 .txt",
    ]
    assert pairs == [{"path": "val/a/6.png", "same_as": "train/b/3.png"}]
    assert dataset["classes"] == ["a", "b", "c"]
    assert dataset["images"] == {"train": 3, "val": 3}


def test_without_duplicates_their_list_is_empty(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "1.png")
    dataset, pairs = prepared(tmp_path / "photos", tmp_path / "data")
    assert dataset["notes"] == ["no labels: evaluations that need them are left out"]
    assert pairs == []


def test_duplicates_are_kept_in_the_manifest(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    files = [ListedFile(name, -1, "train") for name in ("1.png", "2.png", "3.png")]
    write_manifest(Listing(tmp_path, (), files), "x", tmp_path / "data", 0)
    assert len(manifest.load(tmp_path / "data")) == 3
