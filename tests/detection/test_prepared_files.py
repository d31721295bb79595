import dataclasses
import json
import shutil

import numpy as np
import pytest

from salmask.detection import prepared_files as stored
from salmask.detection.protocol import Sets
from salmask.errors import UserError
from salmask.provenance import file_digest
from tests.helpers.drawn_scenes import drawn, with_ignored


@pytest.fixture
def sets(tmp_path):
    train = with_ignored(drawn(tmp_path / "there" / "a", 3), True, False)
    test = drawn(tmp_path / "there" / "b", 2, seed=1)
    return Sets("toy", train, dataclasses.replace(test, skipped=("b, c", "d")))


@pytest.fixture
def saved(sets, tmp_path):
    return stored.save(sets, tmp_path / "there", tmp_path / "out")


def same(one, other):
    assert (one.file.resolve(), one.height, one.width) == (
        other.file.resolve(), other.height, other.width
    )  # fmt: skip
    for name in ("boxes", "labels", "ignored", "areas"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype, name
        assert mine.shape == theirs.shape
    assert one.masks == other.masks


def test_what_is_read_is_what_was_written(sets, saved, tmp_path):
    found = stored.load(tmp_path / "out")
    assert found.name == "toy" and found.train.classes == ("red", "blue")
    for name in ("train", "test"):
        mine, theirs = getattr(found, name), getattr(sets, name)
        assert mine.rule == theirs.rule == "coco"
        for one, other in zip(mine.pictures, theirs.pictures, strict=True):
            same(one, other)
    told = (tmp_path / "out/skipped.csv").read_text().splitlines()
    assert told == ["split,what", 'test,"b, c"', "test,d"]
    assert (saved["images"], saved["objects"]) == ({"train": 3, "test": 2}, {"train": 4, "test": 2})
    assert saved["skipped"] == 2 and saved["masks"]


def test_every_images_bytes_are_in_the_digest(sets, saved, tmp_path):
    line = json.loads((tmp_path / "out/pictures.jsonl").read_text().splitlines()[0])
    assert line["sha256"] == file_digest(tmp_path / "there/a/0.png")
    shutil.copy(tmp_path / "there/a/1.png", tmp_path / "there/a/0.png")  # of the same size
    assert stored.save(sets, tmp_path / "there", tmp_path / "out")["digest"] != saved["digest"]


def test_an_image_on_both_sides_is_noted(sets, tmp_path):
    both = dataclasses.replace(sets, test=sets.train)
    about = stored.save(both, tmp_path / "there", tmp_path / "out")
    assert about["notes"] == ["3 test images are also trained on"]
    apart = dataclasses.replace(sets.test, pictures=sets.test.pictures[:1])  # others are gray
    one = dataclasses.replace(sets, test=apart)
    assert not stored.save(one, tmp_path / "there", tmp_path / "out")["notes"]


def test_without_masks_there_are_none(sets, tmp_path):
    plain = drawn(tmp_path / "there" / "c", 2, masks=False)
    half = dataclasses.replace(sets, test=plain)  # masks in one half are of no use
    stored.save(half, tmp_path / "there", tmp_path / "out")
    assert not stored.load(tmp_path / "out").train.has_masks()


def test_images_inside_the_folder_move_with_it(sets, tmp_path):
    stored.save(sets, tmp_path / "there", tmp_path / "there")
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    found = stored.load(tmp_path / "elsewhere")
    assert found.train.pictures[0].file == tmp_path / "elsewhere/a/0.png"


def test_what_is_missing_or_changed_is_told(saved, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json is missing: run `dvc repro detect_data`"):
        stored.load(tmp_path / "nowhere")
    shutil.move(tmp_path / "there", tmp_path / "away")
    with pytest.raises(UserError, match="is not there: mount it"):
        stored.load(tmp_path / "out")
    pictures = tmp_path / "out/pictures.jsonl"
    pictures.write_text(pictures.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"is not the one that was written"):
        stored.load(tmp_path / "out")


def test_an_image_that_went_meanwhile_is_told(sets, tmp_path):
    (tmp_path / "there/b/1.png").unlink()
    with pytest.raises(UserError, match=r"b/1\.png: not there any more"):
        stored.save(sets, tmp_path / "there", tmp_path / "out")
