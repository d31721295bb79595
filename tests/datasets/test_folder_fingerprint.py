"""Fingerprints of folders, and entries that DVC cannot track."""

import os
import socket

import pytest
from PIL import Image

from salmask.datasets import folder_fingerprint as fingerprint
from salmask.datasets.reader import dataset_reader
from salmask.errors import UserError
from salmask.params.values import Choice


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(path)
    return tmp_path / "photos"


def digest(folder, file):
    fingerprint.write_fingerprint(folder, file)
    return file.read_bytes()


def test_a_fingerprint_file_represents_its_folder(folder, tmp_path):
    assert fingerprint.write_fingerprint(folder, tmp_path / "images.json") == 2
    assert fingerprint.folder_of(tmp_path / "images.json") == folder


@pytest.mark.parametrize("name", ["imagefolder", "coco"])
def test_every_data_set_reads_the_folder_of_a_fingerprint_file(folder, tmp_path, name):
    (folder / "cat").rename(folder / "train2017")
    fingerprint.write_fingerprint(folder, tmp_path / "images.json")
    direct, through = (
        dataset_reader(Choice(name, {"root": str(root)}), "data")[1](tmp_path, 0)
        for root in (folder, tmp_path / "images.json")
    )
    assert direct == through and len(direct.files) == {"imagefolder": 2, "coco": 1}[name]


def test_a_wrong_layout_is_reported_for_the_folder_and_not_the_file(folder, tmp_path):
    fingerprint.write_fingerprint(folder, tmp_path / "images.json")
    choice = Choice("cifar10", {"root": str(tmp_path / "images.json")})
    with pytest.raises(UserError, match=f"`salmask fetch cifar10 {folder}`"):
        dataset_reader(choice, "data")[1](tmp_path, 0)


def test_it_changes_exactly_if_the_folder_changes(folder, tmp_path):
    before = digest(folder, tmp_path / "a.json")
    assert digest(folder, tmp_path / "a.json") == before
    Image.new("RGB", (9, 8)).save(folder / "cat" / "3.png")
    more = digest(folder, tmp_path / "a.json")
    os.utime(folder / "cat" / "1.png", ns=(1, 1))
    touched = digest(folder, tmp_path / "a.json")
    (folder / "cat" / "3.png").rename(folder / "dog" / "3.png")
    moved = digest(folder, tmp_path / "a.json")
    assert len({before, more, touched, moved}) == 4


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"schema": "other", "folder": "."}'])
def test_another_file_is_an_error(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(
        UserError, match=r"x\.json is neither a folder nor .* `salmask fingerprint-"
    ):
        fingerprint.folder_of(tmp_path / "x.json")


def test_a_missing_folder_is_an_error(folder, tmp_path):
    fingerprint.write_fingerprint(folder, tmp_path / "images.json")
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"photos, which .*images\.json represents, is not"):
        fingerprint.folder_of(tmp_path / "images.json")
    with pytest.raises(UserError, match="is not a folder"):
        fingerprint.write_fingerprint(folder, tmp_path / "images.json")


def test_entries_that_stop_dvc_are_listed(folder, tmp_path, monkeypatch):
    assert not list(fingerprint.untrackable(folder))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.jpg").symlink_to(folder / "nothing.jpg")
    (folder / "round").symlink_to(folder)  # a cycle of folders is accepted
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("not UTF-8")
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(folder)  # the path of a socket is limited to about 100 bytes
        bound.bind("socket")
    entries = dict(fingerprint.untrackable(folder))
    assert entries == {
        "broken.jpg": "a broken link",
        r"caf\udce9.txt": "its name is not UTF-8",
        "pipe.jpg": "a pipe, a socket or a device",
        "socket": "a pipe, a socket or a device",
    }
    assert fingerprint.write_fingerprint(folder, tmp_path / "images.json") == 6
