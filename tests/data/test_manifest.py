import csv
import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.data import manifest
from salmask.data import prepare as preparation
from salmask.data.loader import centred
from salmask.datasets.listing import ListedFile, Listing
from salmask.errors import DataGoneError, UserError


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
            ListedFile(name, labels.get(name, -1), "val" if name == "three.png" else "train")
            for name in ["a/one.png", "cut.jpg", "a/two.png", "text.png", "three.png"]
        ],
    )


def test_rows_hold_what_was_found(listing, tmp_path):
    assert preparation.write(listing, "photos", tmp_path / "data", max_rejected=0.5) == 2
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
    path = folder / "rejected.csv"
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def test_what_cannot_be_read_is_listed_with_its_reason(listing, tmp_path):
    preparation.write(listing, "photos", tmp_path / "data", max_rejected=0.5)
    reasons = _rejected(tmp_path / "data")
    assert set(reasons) == {"cut.jpg", "text.png"}
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["text.png"].startswith("not an image")
    assert str(tmp_path) not in "".join(reasons.values())


def test_small_images_are_not_used_and_listed(listing, tmp_path):
    assert preparation.write(listing, "photos", tmp_path / "data", 0.8, min_side=6) == 4
    assert manifest.load(tmp_path / "data").paths.tolist() == ["three.png"]
    reason = _rejected(tmp_path / "data")["a/two.png"]
    assert reason == "10x5 px: a side is below data.min_side (6)"


def test_too_many_unreadable_files_are_refused_and_listed_all_the_same(listing, tmp_path):
    with pytest.raises(UserError, match=r"2 of 5 files .*rejected\.csv.*max_rejected \(0\.3\)"):
        preparation.write(listing, "photos", tmp_path / "data", max_rejected=0.3)
    assert set(_rejected(tmp_path / "data")) == {"cut.jpg", "text.png"}
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_the_allowed_share_may_just_be_reached(listing, tmp_path):
    assert preparation.write(listing, "photos", tmp_path / "data", max_rejected=0.4) == 2


def test_a_folder_with_nothing_usable_is_refused(listing, tmp_path):
    nothing = Listing(listing.root, (), [ListedFile("text.png", -1, "train")])
    with pytest.raises(UserError, match=r"no usable image .*1 of 1 files"):
        preparation.write(nothing, "photos", tmp_path / "data", max_rejected=1)
    assert set(_rejected(tmp_path / "data")) == {"text.png"}


def test_writing_again_gives_the_same_digest(listing, tmp_path):
    digests = set()
    for name in ("a", "b"):
        preparation.write(listing, "photos", tmp_path / name, max_rejected=0.5)
        digests.add(manifest.load(tmp_path / name).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["a label", "a row"])
def test_a_manifest_changed_by_hand_is_refused(listing, tmp_path, change):
    preparation.write(listing, "photos", tmp_path / "data", max_rejected=0.5)
    path = tmp_path / "data" / "manifest.csv"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    changed = text.replace(",1,train", ",0,train") if change == "a label" else "".join(lines[:-1])
    assert changed != text
    path.write_text(changed)
    with pytest.raises(UserError, match="not the one that prepare wrote"):
        manifest.load(tmp_path / "data")


def test_a_changed_image_changes_the_digest(listing, tmp_path):
    preparation.write(listing, "photos", tmp_path / "a", max_rejected=0.5)
    Image.fromarray(np.full((4, 10, 3), 9, np.uint8)).save(listing.root / "a/one.png")
    preparation.write(listing, "photos", tmp_path / "b", max_rejected=0.5)
    assert manifest.load(tmp_path / "a").digest != manifest.load(tmp_path / "b").digest


def test_a_missing_manifest_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro prepare"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("labels", "labelled"),
    [([0, 1], True), ([1, 0, 1], True), ([0, 0], False), ([-1, -1], False), ([-1, 0], False)],
)
def test_labels_count_when_training_images_show_two_classes(make_manifest, labels, labelled):
    pixels = np.zeros((2, 2, 3), np.uint8)
    others = [(pixels, label, "val") for label in (0, 1)]
    found = make_manifest([(pixels, label, "train") for label in labels] + others)
    assert found.labelled() is labelled


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


def test_file_names_of_any_kind_survive(tmp_path):
    for index, name in enumerate(NAMES):
        Image.new("RGB", (3, 2), (index, 0, 0)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(tmp_path / name)
        (tmp_path / ("z" + name[1:])).write_text("no image")
    names = NAMES + ["z" + name[1:] for name in NAMES]
    listing = Listing(tmp_path, (), [ListedFile(name, -1, "train") for name in names])
    preparation.write(listing, "x", tmp_path / "data", 0.5, memory=tmp_path / "seen.sqlite")
    before = _contents(tmp_path / "data")
    preparation.write(listing, "x", tmp_path / "data", 0.5, memory=tmp_path / "seen.sqlite")
    assert _contents(tmp_path / "data") == before
    found = manifest.load(tmp_path / "data")
    assert found.paths.tolist() == NAMES
    for row in range(len(NAMES)):
        assert manifest.read_image(found, row).getpixel((0, 0)) == (row, 0, 0)
    assert list(_rejected(tmp_path / "data")) == names[len(NAMES) :]


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_manifest_beside_its_images_may_move(make_manifest, tmp_path):
    make_manifest([(np.zeros((2, 2, 3), np.uint8), 0, "train")])
    (tmp_path / "data").rename(tmp_path / "moved")
    found = manifest.load(tmp_path / "moved")
    assert found.file(0).is_file()
    assert torch.equal(found.sizes, torch.tensor([[2, 2]]))


# ----------------------------------------------------------------------------- reading a row

READERS = [manifest.read_image, lambda *row: manifest.verified_image(*row)[0]]


@pytest.fixture
def pair(make_manifest):
    """Two images of noise, 24x36 and 20x30 px, and their manifest."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((24, 36), (20, 30))]
    return images, make_manifest([(image, 0, "train") for image in images])


def _damage(path, how) -> str:
    """Damages a file; the reason that is then given."""
    if how == "missing":
        path.unlink()
        return "not there any more"
    if how == "a pipe":
        path.unlink()
        os.mkfifo(path)
        return "a pipe, not a file"
    path.write_bytes(path.read_bytes()[:200])
    return "truncated"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["missing", "broken", "a pipe"])
def test_a_lost_image_is_a_gray_one_of_its_size_and_told_once(pair, caplog, damage):
    images, found = pair
    assert np.array_equal(np.array(manifest.read_image(found, 0)), images[0])
    reason = _damage(found.file(0), damage)
    for _ in range(3):
        image = manifest.read_image(found, 0)
        assert image.size == (36, 24)
        assert len(image.getcolors()) == 1
    assert caplog.text.count("row 0, 000.png: ") == 1 == len(caplog.records)
    assert reason in caplog.text and "a gray image stands in" in caplog.text
    assert np.array_equal(np.array(manifest.read_image(found, 1)), images[1])


def test_an_image_of_another_size_is_used_and_told_once(pair, caplog):
    _, found = pair
    Image.new("RGB", (50, 40), "red").save(found.file(0))
    for _ in range(2):
        assert manifest.read_image(found, 0).getpixel((49, 39)) == (255, 0, 0)
    assert caplog.text.count("row 0, 000.png: it is 50x40 px by now") == 1


def test_a_scaled_jpeg_is_of_the_size_in_the_manifest(tmp_path, caplog):
    Image.new("RGB", (400, 800), "red").save(tmp_path / "large.jpg")
    listing = Listing(tmp_path, (), [ListedFile("large.jpg", -1, "train")])
    preparation.write(listing, "x", tmp_path / "data", 0)
    found = manifest.load(tmp_path / "data")
    assert manifest.read_image(found, 0, at_least=50).size == (50, 100)
    image, problem = manifest.verified_image(found, 0, at_least=50)
    assert image.size == (50, 100) and problem is None
    assert not caplog.records


def test_a_verified_image_is_the_one_that_prepare_saw(pair):
    images, found = pair
    image, problem = manifest.verified_image(found, 0)
    assert np.array_equal(np.array(image), images[0]) and problem is None
    Image.fromarray(images[0] ^ 1).save(found.file(0))  # same size, other pixels
    image, problem = manifest.verified_image(found, 0)
    assert problem == "it has changed since prepare"
    assert image.size == (36, 24) and len(image.getcolors()) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["missing", "a pipe"])
def test_a_verified_image_that_is_lost_says_why(pair, damage):
    _, found = pair
    reason = _damage(found.file(0), damage)
    image, problem = manifest.verified_image(found, 0)
    assert problem == reason
    assert image.size == (36, 24) and len(image.getcolors()) == 1


@pytest.mark.parametrize("read", READERS, ids=["read", "verified"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_without_its_whole_folder_nothing_stands_in(pair, read, how):
    _, found = pair
    found.root.rename(found.root.with_name("moved"))
    if how == "empty":
        found.root.mkdir()  # what an unmounted disk leaves
    with pytest.raises(DataGoneError, match=r"folder .*images is (not there|empty): mount it$"):
        read(found, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_that_misses_the_folder_says_it_in_one_sentence(pair, workers):
    _, found = pair
    found.root.rename(found.root.with_name("moved"))
    batches = centred(
        found, torch.arange(2), 8, 8, batch=1, device=torch.device("cpu"), workers=workers
    )
    with pytest.raises(DataGoneError) as gone:
        list(batches)
    assert str(gone.value) == f"the images' folder {found.root} is not there: mount it"


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_folder_of_images_that_is_gone_is_refused_at_the_start(tmp_path, how):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "photos" / "a.png")
    listing = Listing(tmp_path / "photos", (), [ListedFile("a.png", -1, "train")])
    preparation.write(listing, "x", tmp_path / "data", 0)
    (tmp_path / "photos").rename(tmp_path / "moved")
    if how == "empty":
        (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos is (not there|empty): mount it"):
        manifest.load(tmp_path / "data")
    with pytest.raises(DataGoneError, match=r"photos is (not there|empty): mount it"):
        preparation.write(listing, "x", tmp_path / "data", 1)
