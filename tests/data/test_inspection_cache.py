"""Cached inspections are reused, and do not change the result."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from salmask.data import file_bytes, inspection, inspection_cache, manifest, prepare
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.files import file_digest


class Folder:
    """A folder of images, its manifest, its cache, and the files that were read."""

    def __init__(self, tmp_path) -> None:
        self.root, self.out = tmp_path / "photos", tmp_path / "data"
        self.cache = tmp_path / "runs" / "inspections.sqlite"
        self.read: list[str] = []
        self.root.mkdir()

    def add(self, *names: str, shade: int = 0) -> None:
        for name in names:
            if name.endswith("t.png"):
                (self.root / name).write_text(f"text {shade}")
            else:
                colour = (len(self.names()), 0, 0)
                Image.new("RGB", (9, 9 + shade), colour).save(self.root / name)

    def write(self, cache=True, **options) -> list[str]:
        """Writes the manifest; returns the files that were read, in order."""
        self.read.clear()
        files = [ListedFile(name, -1, "train") for name in self.names()]
        listing = Listing(self.root, (), files)
        write_manifest(listing, "x", self.out, 0.9, cache=self.cache if cache else None, **options)
        return sorted(self.read)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def result(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}

    def cached(self) -> list[str]:
        with sqlite3.connect(self.cache) as database:
            rows = database.execute("SELECT path FROM checked_inspections ORDER BY path").fetchall()
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [os.fsdecode(path) for (path,) in rows]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    made = Folder(tmp_path)
    original = inspection.open_with_digest

    def recorded(path):
        made.read.append(path.name)
        return original(path)

    monkeypatch.setattr(inspection, "open_with_digest", recorded)
    return made


def test_only_what_is_new_or_changed_is_read(folder):
    folder.add("a.png", "b.png", "t.png")
    assert folder.write() == ["a.png", "b.png", "t.png"]
    assert folder.write() == []
    folder.add("c.png", "d\udcff.png")
    assert folder.write() == ["c.png", "d\udcff.png"]
    folder.add("b.png", "t.png", shade=5)
    assert folder.write() == ["b.png", "t.png"]
    assert manifest.load(folder.out).sizes.tolist() == [[9, 9], [14, 9], [9, 9], [9, 9]]
    assert folder.write(cache=False) == ["a.png", "b.png", "c.png", "d\udcff.png", "t.png"]


def test_the_result_is_the_same_with_and_without_a_cache(folder):
    folder.add("a.png", "b.png", "e.png", "t.png", "d\udcff.png")
    (folder.root / "c.png").write_bytes((folder.root / "a.png").read_bytes())
    folder.write(cache=False)
    plain = folder.result()
    tables = ["duplicates.csv", "manifest.csv", "manifest.safetensors", "rejected.csv"]
    assert sorted(plain) == sorted(["dataset.json", "location.json", *tables])
    assert b"c.png,a.png" in plain["duplicates.csv"]
    for _ in range(2):
        folder.write()
        assert folder.result() == plain


def test_another_min_side_needs_no_reading(folder):
    folder.add("a.png")
    folder.add("b.png", shade=3)
    Image.new("RGB", (12, 12)).save(folder.root / "c.png")
    folder.write()
    assert folder.write(min_side=10) == []
    assert manifest.load(folder.out).paths.tolist() == ["c.png"]
    assert folder.write(min_side=9) == []
    assert len(manifest.load(folder.out)) == 3


def test_missing_files_are_deleted_from_the_cache(folder):
    folder.add("a.png", "b.png", "t.png")
    folder.write()
    assert folder.cached() == ["a.png", "b.png", "t.png"]
    (folder.root / "a.png").unlink()
    (folder.root / "t.png").unlink()
    assert folder.write() == []
    assert folder.cached() == ["b.png"]


def test_a_replaced_file_is_read(folder):
    folder.add("a.png", "b.png")
    times = (folder.root / "a.png").stat()
    folder.write()
    Image.new("RGB", (9, 9), (77, 0, 0)).save(folder.root.parent / "new.png")
    (folder.root.parent / "new.png").replace(folder.root / "a.png")
    os.utime(folder.root / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folder.write() == ["a.png"]


def test_an_unreadable_file_is_read_again(folder, monkeypatch):
    folder.add("a.png", "b.png")
    open_file = file_bytes.open_file

    def failing(path):
        if path.name == "a.png":
            raise file_bytes.UnreadableError("input/output error")
        return open_file(path)

    monkeypatch.setattr(file_bytes, "open_file", failing)
    folder.write()
    assert manifest.load(folder.out).paths.tolist() == ["b.png"]
    assert folder.cached() == ["b.png"]
    monkeypatch.setattr(file_bytes, "open_file", open_file)
    assert folder.write() == ["a.png"]
    assert len(manifest.load(folder.out)) == 2


def test_a_file_that_changes_while_it_is_read_is_not_cached(folder, monkeypatch):
    folder.add("a.png", "b.png")
    load_pixels = inspection.load_pixels

    def slow(image, at_least):
        if not (folder.root / "late").exists():
            (folder.root / "late").touch()
            os.utime(folder.root / "a.png", ns=(1, 1))
        return load_pixels(image, at_least)

    monkeypatch.setattr(inspection, "load_pixels", slow)
    result = inspection.inspect(folder.root / "a.png")
    assert result == inspection.Inspection("", reason="it changed while it was read")
    assert inspection.inspect(folder.root / "a.png").reason == ""


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_large_files_give_the_same_result(folder, monkeypatch, limit):
    monkeypatch.setattr(file_bytes, "_MAX_IN_MEMORY", limit)
    folder.add("a.png", "t.png")
    folder.write()
    rows = manifest.load(folder.out)
    assert rows.sha256[0] == file_digest(rows.file(0))
    image, problem = manifest.verified_image(rows, 0)
    assert problem is None
    assert np.array_equal(np.array(image), np.array(Image.open(rows.file(0))))


def test_large_images_are_decoded_one_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(inspection, "_LARGE", 100)
    load_pixels, running, most = inspection.load_pixels, [], {"large": 0, "small": 0}

    def recorded(image, at_least):
        kind = "large" if image.height > 20 else "small"
        running.append(kind)
        most[kind] = max(most[kind], running.count(kind))
        time.sleep(0.02)
        running.remove(kind)
        return load_pixels(image, at_least)

    monkeypatch.setattr(inspection, "load_pixels", recorded)
    folder.add(*[f"{index}.png" for index in range(8)])
    folder.add(*[f"{index}h.png" for index in range(8)], shade=30)
    folder.write()
    assert most["large"] == 1 < most["small"]


# -------------------------------------------------------------------------------------- errors


def test_a_damaged_cache_gives_a_warning(folder, caplog):
    folder.add("a.png", "t.png")
    folder.write(cache=False)
    plain = folder.result()
    folder.cache.parent.mkdir()
    folder.cache.write_bytes(b"no database at all" * 100)
    assert folder.write() == ["a.png", "t.png"]
    assert folder.result() == plain
    assert "inspections.sqlite: file is not a database" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        "width = width + 1",
        "height = NULL",
        "sha256 = upper(sha256)",
        "state = state || ' '",
        "reason = 'x'",
        "digest = zeroblob(32)",
    ],
)
def test_the_file_of_a_damaged_row_is_read_again(folder, caplog, change):
    folder.add("a.png", "b.png", "t.png")
    folder.write()
    plain = folder.result()
    with sqlite3.connect(folder.cache) as database:
        database.execute(f"UPDATE checked_inspections SET {change} WHERE path = ?", (b"a.png",))
    assert folder.write() == ["a.png"]
    assert folder.result() == plain
    assert "inspections.sqlite: 1 rows are damaged; their files are read again" in caplog.text
    assert folder.write() == []


def test_a_locked_cache_is_not_used(folder, caplog, monkeypatch):
    folder.add("a.png", "t.png")
    folder.write()
    plain = folder.result()
    monkeypatch.setattr(inspection_cache, "_TIMEOUT_SECONDS", 0.1)
    holder = sqlite3.connect(folder.cache, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert folder.write() == ["a.png", "t.png"]
    assert "database is locked" in caplog.text
    holder.close()
    assert folder.write() == []
    assert folder.result() == plain


def test_a_cache_that_cannot_be_created_is_not_used(folder, caplog):
    folder.add("a.png")
    folder.cache.parent.write_text("a file where the folder should be")
    assert folder.write() == ["a.png"]
    assert len(caplog.records) == 1


# ----------------------------------------------------------------------------- other processes

PREPARE = """
import sys, time
from pathlib import Path
from salmask.data import inspection, prepare
from salmask.datasets import ListedFile, Listing
prepare._CHUNK = 16
original, root, out, cache = inspection.open_with_digest, *map(Path, sys.argv[1:4])
def slow(path):
    time.sleep(0.005)
    return original(path)
inspection.open_with_digest = slow
files = [ListedFile(path.name, -1, "train") for path in sorted(root.iterdir())]
prepare.write_manifest(Listing(root, (), files), "x", out, 0.9, cache=cache)
"""


def start(folder: Folder, out) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder.root), str(out), str(folder.cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def count_cached(folder: Folder) -> int:
    return len(folder.cached()) if folder.cache.exists() else 0


@pytest.mark.timeout(120)
def test_a_killed_preparation_resumes(folder, monkeypatch):
    folder.add(*[f"{index:03d}.png" for index in range(400)], "t.png")
    folder.write(cache=False)
    plain = folder.result()
    process = start(folder, folder.out)
    while True:
        assert process.poll() is None, process.communicate()[0]
        try:
            if count_cached(folder) >= 32:
                break
        except sqlite3.OperationalError as error:  # it is being created
            assert "no such table" in str(error)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cached = count_cached(folder)
    assert 32 <= cached < 401
    monkeypatch.setattr(prepare, "_CHUNK", 16)
    assert len(folder.write()) == 401 - cached
    assert folder.result() == plain


@pytest.mark.timeout(120)
def test_two_preparations_can_share_a_cache(folder):
    folder.add(*[f"{index:03d}.png" for index in range(100)], "t.png")
    folder.write(cache=False)
    plain = folder.result()
    outs = [folder.out.with_name(name) for name in ("one", "two")]
    for process in [start(folder, out) for out in outs]:
        output = process.communicate()[0]
        assert process.returncode == 0 and "sqlite" not in output, output
    for folder.out in outs:
        assert folder.result() == plain
    assert len(folder.cached()) == 101
