import csv
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.data import manifest
from salmask.data.manifest import Found, Listing
from salmask.errors import UserError


@pytest.fixture
def listing(tmp_path) -> Listing:
    """Five files: three images, a truncated one and a text, in two splits."""
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    names = ["a/one.png", "a/two.png", "three.png"]
    for i, name in enumerate(names):
        Image.fromarray(np.full((4 + i, 10, 3), 50 * i, np.uint8)).save(root / name)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "cut.jpg")
    (root / "cut.jpg").write_bytes((root / "cut.jpg").read_bytes()[:2000])
    (root / "text.png").write_text("no image")
    labels = {"a/one.png": 0, "a/two.png": 1}
    return Listing(
        root,
        ("x", "y"),
        [
            Found(name, labels.get(name, -1), "val" if name == "three.png" else "train")
            for name in ["a/one.png", "cut.jpg", "a/two.png", "text.png", "three.png"]
        ],
    )


def test_rows_hold_what_was_found(listing, tmp_path):
    assert manifest.write(listing, "photos", tmp_path / "data", max_rejected=0.5) == 2
    found = manifest.load(tmp_path / "data")
    assert len(found) == 3
    assert found.paths.tolist() == ["a/one.png", "a/two.png", "three.png"]
    assert found.labels.tolist() == [0, 1, -1]
    assert found.splits.tolist() == ["train", "train", "val"]
    assert found.sizes.tolist() == [[4, 10], [5, 10], [6, 10]]  # height, width
    assert found.classes == ("x", "y")
    assert found.split_names() == ["train", "val"]
    assert found.ids("train").tolist() == [0, 1] and found.ids("absent").tolist() == []
    for row in range(3):
        content = found.file(row).read_bytes()
        assert found.sha256[row] == hashlib.sha256(content).hexdigest()
    with (tmp_path / "data" / "manifest.csv").open() as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == ["0", "1", "2"]


def _rejected(folder):
    with (folder / "rejected.csv").open() as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def test_what_cannot_be_read_is_listed_with_its_reason(listing, tmp_path):
    manifest.write(listing, "photos", tmp_path / "data", max_rejected=0.5)
    reasons = _rejected(tmp_path / "data")
    assert set(reasons) == {"cut.jpg", "text.png"}
    assert "truncated" in reasons["cut.jpg"]
    assert "UnidentifiedImageError" in reasons["text.png"]
    assert str(tmp_path) not in "".join(reasons.values())


def test_too_many_unreadable_files_are_refused_and_listed_all_the_same(listing, tmp_path):
    with pytest.raises(UserError, match=r"2 of 5 files .*rejected\.csv.*max_rejected \(0\.3\)"):
        manifest.write(listing, "photos", tmp_path / "data", max_rejected=0.3)
    assert set(_rejected(tmp_path / "data")) == {"cut.jpg", "text.png"}
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_the_allowed_share_may_just_be_reached(listing, tmp_path):
    assert manifest.write(listing, "photos", tmp_path / "data", max_rejected=0.4) == 2


def test_a_folder_with_nothing_usable_is_refused(listing, tmp_path):
    nothing = Listing(listing.root, (), [Found("text.png", -1, "train")])
    with pytest.raises(UserError, match=r"no usable image .*1 of 1 files"):
        manifest.write(nothing, "photos", tmp_path / "data", max_rejected=1)
    assert set(_rejected(tmp_path / "data")) == {"text.png"}


def test_writing_again_gives_the_same_digest(listing, tmp_path):
    digests = set()
    for name in ("a", "b"):
        manifest.write(listing, "photos", tmp_path / name, max_rejected=0.5)
        digests.add(manifest.load(tmp_path / name).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["a label", "a row"])
def test_a_manifest_changed_by_hand_is_refused(listing, tmp_path, change):
    manifest.write(listing, "photos", tmp_path / "data", max_rejected=0.5)
    path = tmp_path / "data" / "manifest.csv"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    changed = text.replace(",1,train", ",0,train") if change == "a label" else "".join(lines[:-1])
    assert changed != text
    path.write_text(changed)
    with pytest.raises(UserError, match="not the one that prepare wrote"):
        manifest.load(tmp_path / "data")


def test_a_changed_image_changes_the_digest(listing, tmp_path):
    manifest.write(listing, "photos", tmp_path / "a", max_rejected=0.5)
    Image.fromarray(np.full((4, 10, 3), 9, np.uint8)).save(listing.root / "a/one.png")
    manifest.write(listing, "photos", tmp_path / "b", max_rejected=0.5)
    assert manifest.load(tmp_path / "a").digest != manifest.load(tmp_path / "b").digest


def test_a_missing_manifest_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro prepare"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("labels", "labelled"),
    [([0, 1], True), ([5, 2, 5], True), ([0, 0], False), ([-1, -1], False), ([-1, 0], False)],
)
def test_labels_count_when_two_classes_are_in_use(make_manifest, labels, labelled):
    pixels = np.zeros((2, 2, 3), np.uint8)
    found = make_manifest([(pixels, label, "train") for label in labels])
    assert found.labelled() is labelled


@pytest.mark.parametrize(
    "name",
    [
        "a,b.png",
        'quo"te.png',
        "sp ace.png",
        "ümlaut.png",
        "line\u2028separator.png",
        "new\nline.png",
    ],
)
def test_file_names_of_any_kind_survive(tmp_path, name):
    Image.new("RGB", (3, 2)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / name)
    manifest.write(Listing(tmp_path, (), [Found(name, -1, "train")]), "x", tmp_path / "data", 0)
    found = manifest.load(tmp_path / "data")
    assert found.paths.tolist() == [name]
    assert found.file(0).is_file()


def test_a_manifest_beside_its_images_may_move(make_manifest, tmp_path):
    make_manifest([(np.zeros((2, 2, 3), np.uint8), 0, "train")])
    (tmp_path / "data").rename(tmp_path / "moved")
    found = manifest.load(tmp_path / "moved")
    assert found.file(0).is_file()
    assert torch.equal(found.sizes, torch.tensor([[2, 2]]))


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_lost_image_is_a_gray_one_of_its_size_and_told(make_manifest, caplog, damage):
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    found = make_manifest([(noise, 0, "train")])
    assert np.array_equal(np.array(manifest.read_image(found, 0)), noise)
    if damage == "missing":
        found.file(0).unlink()
    else:
        found.file(0).write_bytes(found.file(0).read_bytes()[:200])
    image = manifest.read_image(found, 0)
    assert image.size == (36, 24)
    assert len(image.getcolors()) == 1
    assert "row 0, 000.png" in caplog.text


def test_a_folder_of_images_that_is_gone_is_refused_at_the_start(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "photos" / "a.png")
    listing = Listing(tmp_path / "photos", (), [Found("a.png", -1, "train")])
    manifest.write(listing, "x", tmp_path / "data", 0)
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="photos is not there"):
        manifest.load(tmp_path / "data")
