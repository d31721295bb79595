"""The manifest: written, read, and its images."""

import csv
import gc
import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.data import manifest
from salmask.data.loader import evaluation_images
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.errors import DataGoneError, UserError


@pytest.fixture
def listing(tmp_path) -> Listing:
    """Five files in two splits: three images, a truncated image and a text file."""
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
            ListedFile(name, labels.get(name, -1), "val" if name == "three.png" else "train")
            for name in ["a/one.png", "cut.jpg", "a/two.png", "text.png", "three.png"]
        ],
    )


def test_rows_describe_the_files(listing, tmp_path):
    assert write_manifest(listing, "photos", tmp_path / "data", max_rejected=0.5) == 2
    rows = manifest.load(tmp_path / "data")
    assert len(rows) == 3
    assert rows.paths.tolist() == ["a/one.png", "a/two.png", "three.png"]
    assert rows.labels.tolist() == [0, 1, -1]
    assert rows.splits.tolist() == ["train", "train", "val"]
    assert rows.sizes.tolist() == [[4, 10], [5, 10], [6, 10]]  # height, width
    assert rows.classes == ("x", "y")
    assert rows.split_names() == ["train", "val"]
    assert rows.ids("train").tolist() == [0, 1] and rows.ids("absent").tolist() == []
    for row in range(3):
        content = rows.file(row).read_bytes()
        assert rows.sha256[row] == hashlib.sha256(content).hexdigest()
    with (tmp_path / "data" / "manifest.csv").open() as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == ["0", "1", "2"]


def _rejected(folder):
    path = folder / "rejected.csv"
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def test_unusable_files_are_listed_with_a_reason(listing, tmp_path):
    write_manifest(listing, "photos", tmp_path / "data", max_rejected=0.5)
    reasons = _rejected(tmp_path / "data")
    assert set(reasons) == {"cut.jpg", "text.png"}
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["text.png"].startswith("not an image")
    assert str(tmp_path) not in "".join(reasons.values())


def test_small_images_are_rejected(listing, tmp_path):
    assert write_manifest(listing, "photos", tmp_path / "data", 0.8, min_side=6) == 4
    assert manifest.load(tmp_path / "data").paths.tolist() == ["three.png"]
    reason = _rejected(tmp_path / "data")["a/two.png"]
    assert reason == "10x5 px: a side is below data.min_side (6)"


def test_too_many_unusable_files_are_an_error(listing, tmp_path):
    with pytest.raises(UserError, match=r"2 of 5 files .*rejected\.csv.*max_rejected \(0\.3\)"):
        write_manifest(listing, "photos", tmp_path / "data", max_rejected=0.3)
    assert set(_rejected(tmp_path / "data")) == {"cut.jpg", "text.png"}
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_the_allowed_share_is_inclusive(listing, tmp_path):
    assert write_manifest(listing, "photos", tmp_path / "data", max_rejected=0.4) == 2


def test_no_usable_file_is_an_error(listing, tmp_path):
    nothing = Listing(listing.root, (), [ListedFile("text.png", -1, "train")])
    with pytest.raises(UserError, match=r"no usable image .*1 of 1 files"):
        write_manifest(nothing, "photos", tmp_path / "data", max_rejected=1)
    assert set(_rejected(tmp_path / "data")) == {"text.png"}


def test_writing_again_gives_the_same_digest(listing, tmp_path):
    digests = set()
    for name in ("a", "b"):
        write_manifest(listing, "photos", tmp_path / name, max_rejected=0.5)
        digests.add(manifest.load(tmp_path / name).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["a label", "a row"])
def test_an_edited_manifest_is_an_error(listing, tmp_path, change):
    write_manifest(listing, "photos", tmp_path / "data", max_rejected=0.5)
    path = tmp_path / "data" / "manifest.csv"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    changed = text.replace(",1,train", ",0,train") if change == "a label" else "".join(lines[:-1])
    assert changed != text
    path.write_text(changed)
    with pytest.raises(UserError, match="was edited or damaged after it was written"):
        manifest.load(tmp_path / "data")


def test_a_changed_image_changes_the_digest(listing, tmp_path):
    write_manifest(listing, "photos", tmp_path / "a", max_rejected=0.5)
    Image.fromarray(np.full((4, 10, 3), 9, np.uint8)).save(listing.root / "a/one.png")
    write_manifest(listing, "photos", tmp_path / "b", max_rejected=0.5)
    assert manifest.load(tmp_path / "a").digest != manifest.load(tmp_path / "b").digest


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(UserError, match="dvc repro prepare"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("labels", "labelled"),
    [([0, 1], True), ([1, 0, 1], True), ([0, 0], False), ([-1, -1], False), ([-1, 0], False)],
)
def test_labels_count_if_training_images_have_two_classes(make_manifest, labels, labelled):
    pixels = np.zeros((2, 2, 3), np.uint8)
    others = [(pixels, label, "val") for label in (0, 1)]
    rows = make_manifest([(pixels, label, "train") for label in labels] + others)
    assert rows.labelled() is labelled


NAMES = [
    "a,b.png",
    'quo"te.png',
    "sp ace.png",
    "ümlaut.png",
    "line\u2028separator.png",
    "new\nline.png",
    "carriage\rreturn.png",
    "x" * 251 + ".png",
    "not-utf8-\udcff\udcfe.png",
]


def test_unusual_file_names_are_kept(tmp_path):
    for index, name in enumerate(NAMES):
        Image.new("RGB", (3, 2), (index, 0, 0)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(tmp_path / name)
        (tmp_path / ("z" + name[1:])).write_text("no image")
    names = NAMES + ["z" + name[1:] for name in NAMES]
    listing = Listing(tmp_path, (), [ListedFile(name, -1, "train") for name in names])
    write_manifest(listing, "x", tmp_path / "data", 0.5, cache=tmp_path / "inspections.sqlite")
    before = _contents(tmp_path / "data")
    write_manifest(listing, "x", tmp_path / "data", 0.5, cache=tmp_path / "inspections.sqlite")
    assert _contents(tmp_path / "data") == before
    rows = manifest.load(tmp_path / "data")
    assert rows.paths.tolist() == NAMES
    for row in range(len(NAMES)):
        assert manifest.read_image(rows, row).getpixel((0, 0)) == (row, 0, 0)
    assert list(_rejected(tmp_path / "data")) == names[len(NAMES) :]


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_manifest_beside_its_images_may_move(make_manifest, tmp_path):
    make_manifest([(np.zeros((2, 2, 3), np.uint8), 0, "train")])
    (tmp_path / "data").rename(tmp_path / "moved")
    rows = manifest.load(tmp_path / "moved")
    assert rows.file(0).is_file()
    assert torch.equal(rows.sizes, torch.tensor([[2, 2]]))


# ----------------------------------------------------------------------------- reading a row

READERS = [manifest.read_image, lambda *row: manifest.verified_image(*row)[0]]


@pytest.fixture
def pair(make_manifest):
    """Two images of noise, 24x36 and 20x30 px, and their manifest."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((24, 36), (20, 30))]
    return images, make_manifest([(image, 0, "train") for image in images])


def _damage(path, how) -> str:
    """Damages a file; returns the expected reason."""
    if how == "missing":
        path.unlink()
        return "it no longer exists"
    if how == "a pipe":
        path.unlink()
        os.mkfifo(path)
        return "a pipe, not a file"
    path.write_bytes(path.read_bytes()[:200])
    return "truncated"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["missing", "broken", "a pipe"])
def test_a_lost_image_becomes_gray_with_one_warning(pair, caplog, damage):
    images, rows = pair
    assert np.array_equal(np.array(manifest.read_image(rows, 0)), images[0])
    reason = _damage(rows.file(0), damage)
    for _ in range(3):
        image = manifest.read_image(rows, 0)
        assert image.size == (36, 24)
        assert len(image.getcolors()) == 1
    assert caplog.text.count("row 0, 000.png: ") == 1 == len(caplog.records)
    assert reason in caplog.text and "a gray image is used" in caplog.text
    assert np.array_equal(np.array(manifest.read_image(rows, 1)), images[1])


def test_an_image_of_another_size_is_used_with_one_warning(pair, caplog):
    _, rows = pair
    Image.new("RGB", (50, 40), "red").save(rows.file(0))
    for _ in range(2):
        assert manifest.read_image(rows, 0).getpixel((49, 39)) == (255, 0, 0)
    assert caplog.text.count("row 0, 000.png: its size changed to 50x40 px") == 1


def test_a_scaled_jpeg_gives_no_warning(tmp_path, caplog):
    Image.new("RGB", (400, 800), "red").save(tmp_path / "large.jpg")
    listing = Listing(tmp_path, (), [ListedFile("large.jpg", -1, "train")])
    write_manifest(listing, "x", tmp_path / "data", 0)
    rows = manifest.load(tmp_path / "data")
    assert manifest.read_image(rows, 0, at_least=50).size == (50, 100)
    image, problem = manifest.verified_image(rows, 0, at_least=50)
    assert image.size == (50, 100) and problem is None
    assert not caplog.records


def test_a_verified_image_has_the_digest_of_the_manifest(pair):
    images, rows = pair
    image, problem = manifest.verified_image(rows, 0)
    assert np.array_equal(np.array(image), images[0]) and problem is None
    Image.fromarray(images[0] ^ 1).save(rows.file(0))  # same size, other pixels
    image, problem = manifest.verified_image(rows, 0)
    assert problem == "it has changed since prepare"
    assert image.size == (36, 24) and len(image.getcolors()) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["missing", "a pipe"])
def test_a_lost_verified_image_has_a_reason(pair, damage):
    _, rows = pair
    reason = _damage(rows.file(0), damage)
    image, problem = manifest.verified_image(rows, 0)
    assert problem == reason
    assert image.size == (36, 24) and len(image.getcolors()) == 1


@pytest.mark.parametrize("read", READERS, ids=["read", "verified"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_missing_folder_is_an_error_and_no_gray_image(pair, read, how):
    _, rows = pair
    rows.root.rename(rows.root.with_name("moved"))
    if how == "empty":
        rows.root.mkdir()  # as after an unmount
    with pytest.raises(DataGoneError, match=r"/images (does not exist|is empty): mount it$"):
        read(rows, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_folder_in_a_worker_gives_the_same_message(pair, workers, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # s, at its end
    _, rows = pair
    rows.root.rename(rows.root.with_name("moved"))
    batches = evaluation_images(
        rows, torch.arange(2), 8, 8, batch=1, device=torch.device("cpu"), workers=workers
    )
    with pytest.raises(DataGoneError) as error:
        list(batches)
    assert str(error.value) == f"the images' folder {rows.root} does not exist: mount it"
    del batches, error
    gc.collect()  # ends the worker process at once


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_missing_folder_is_an_error_at_the_start(tmp_path, how):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "photos" / "a.png")
    listing = Listing(tmp_path / "photos", (), [ListedFile("a.png", -1, "train")])
    write_manifest(listing, "x", tmp_path / "data", 0)
    (tmp_path / "photos").rename(tmp_path / "moved")
    if how == "empty":
        (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos (does not exist|is empty): mount it"):
        manifest.load(tmp_path / "data")
    with pytest.raises(DataGoneError, match=r"photos (does not exist|is empty): mount it"):
        write_manifest(listing, "x", tmp_path / "data", 1)
