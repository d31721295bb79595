import dataclasses
import json
import shutil

import numpy as np
import pytest

from salmask.detection import prepared_files
from salmask.detection.objects import DetectionData
from salmask.errors import UserError
from salmask.files import file_digest
from tests.helpers.drawn_scenes import drawn, with_ignored


@pytest.fixture
def data(tmp_path):
    train = with_ignored(drawn(tmp_path / "root" / "a", 3), True, False)
    test = drawn(tmp_path / "root" / "b", 2, seed=1)
    return DetectionData("toy", train, dataclasses.replace(test, skipped=("b, c", "d")))


@pytest.fixture
def saved(data, tmp_path):
    return prepared_files.save(data, tmp_path / "root", tmp_path / "out")


def assert_equal(one, other):
    assert (one.file.resolve(), one.height, one.width) == (
        other.file.resolve(), other.height, other.width
    )  # fmt: skip
    for name in ("boxes", "labels", "ignored", "areas"):
        array, expected = getattr(one, name), getattr(other, name)
        assert np.array_equal(array, expected) and array.dtype == expected.dtype, name
        assert array.shape == expected.shape
    assert one.masks == other.masks


def test_loaded_annotations_equal_the_saved_ones(data, saved, tmp_path):
    loaded = prepared_files.load(tmp_path / "out")
    assert loaded.name == "toy" and loaded.train.classes == ("red", "blue")
    for name in ("train", "test"):
        split, expected = getattr(loaded, name), getattr(data, name)
        assert split.rule == expected.rule == "coco"
        for one, other in zip(split.images, expected.images, strict=True):
            assert_equal(one, other)
    lines = (tmp_path / "out/skipped.csv").read_text().splitlines()
    assert lines == ["split,what", 'test,"b, c"', "test,d"]
    assert (saved["images"], saved["objects"]) == ({"train": 3, "test": 2}, {"train": 4, "test": 2})
    assert saved["skipped"] == 2 and saved["masks"]


def test_every_images_bytes_are_in_the_digest(data, saved, tmp_path):
    line = json.loads((tmp_path / "out/pictures.jsonl").read_text().splitlines()[0])
    assert line["sha256"] == file_digest(tmp_path / "root/a/0.png")
    shutil.copy(tmp_path / "root/a/1.png", tmp_path / "root/a/0.png")  # of the same size
    assert (
        prepared_files.save(data, tmp_path / "root", tmp_path / "out")["digest"] != saved["digest"]
    )


def test_an_image_in_both_splits_is_noted(data, tmp_path):
    same_images = dataclasses.replace(data, test=data.train)
    metadata = prepared_files.save(same_images, tmp_path / "root", tmp_path / "out")
    assert metadata["notes"] == ["3 test images are also trained on"]
    # the last image of each split is plain gray
    distinct = dataclasses.replace(data.test, images=data.test.images[:1])
    no_overlap = dataclasses.replace(data, test=distinct)
    assert not prepared_files.save(no_overlap, tmp_path / "root", tmp_path / "out")["notes"]


def test_without_masks_there_are_none(data, tmp_path):
    plain = drawn(tmp_path / "root" / "c", 2, masks=False)
    one_split = dataclasses.replace(data, test=plain)  # masks in one split are not used
    prepared_files.save(one_split, tmp_path / "root", tmp_path / "out")
    assert not prepared_files.load(tmp_path / "out").train.has_masks()


def test_images_inside_the_folder_move_with_it(data, tmp_path):
    prepared_files.save(data, tmp_path / "root", tmp_path / "root")
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    loaded = prepared_files.load(tmp_path / "elsewhere")
    assert loaded.train.images[0].file == tmp_path / "elsewhere/a/0.png"


def test_missing_and_changed_files_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json is missing: run `dvc repro detect_data`"):
        prepared_files.load(tmp_path / "nowhere")
    shutil.move(tmp_path / "root", tmp_path / "away")
    with pytest.raises(UserError, match="does not exist: mount it"):
        prepared_files.load(tmp_path / "out")
    lines = tmp_path / "out/pictures.jsonl"
    lines.write_text(lines.read_text() + "{}\n")
    with pytest.raises(UserError, match="has changed since it was written"):
        prepared_files.load(tmp_path / "out")


def test_an_image_that_was_deleted_meanwhile_is_refused(data, tmp_path):
    (tmp_path / "root/b/1.png").unlink()
    with pytest.raises(UserError, match=r"b/1\.png: it no longer exists"):
        prepared_files.save(data, tmp_path / "root", tmp_path / "out")


def test_a_split_without_an_object_is_refused(data, tmp_path):
    """An evaluation of it would write no score."""
    images = [
        dataclasses.replace(image, ignored=np.ones(len(image), dtype=bool))
        for image in data.test.images
    ]
    ignored = dataclasses.replace(data.test, images=tuple(images))
    for changed, name in (({"test": ignored}, "test"), ({"train": ignored}, "train")):
        with pytest.raises(UserError, match=f"the {name} split of toy .* none is left to"):
            prepared_files.save(dataclasses.replace(data, **changed), tmp_path / "root", tmp_path)
