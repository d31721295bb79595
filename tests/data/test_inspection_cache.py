"""What earlier preparations found out is used again, and never shows in the result."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from salmask.data import file_bytes as content
from salmask.data import inspection, manifest
from salmask.data import inspection_cache as seen
from salmask.data import prepare as preparation
from salmask.datasets.listing import ListedFile, Listing
from salmask.provenance import file_digest


class Folder:
    """A folder of images, its manifest, its memory, and what was read of it."""

    def __init__(self, tmp_path) -> None:
        self.root, self.out = tmp_path / "photos", tmp_path / "data"
        self.memory = tmp_path / "runs" / "seen.sqlite"
        self.read: list[str] = []
        self.root.mkdir()

    def add(self, *names: str, shade: int = 0) -> None:
        for name in names:
            if name.endswith("t.png"):
                (self.root / name).write_text(f"text {shade}")
            else:
                colour = (len(self.names()), 0, 0)
                Image.new("RGB", (9, 9 + shade), colour).save(self.root / name)

    def write(self, memory=True, **options) -> list[str]:
        """Prepares; the files that were read for it, in order."""
        self.read.clear()
        files = [ListedFile(name, -1, "train") for name in self.names()]
        listing = Listing(self.root, (), files)
        preparation.write(
            listing, "x", self.out, 0.9, memory=self.memory if memory else None, **options
        )
        return sorted(self.read)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def result(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}

    def known(self) -> list[str]:
        with sqlite3.connect(self.memory) as database:
            rows = database.execute("SELECT path FROM seen ORDER BY path").fetchall()
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [os.fsdecode(path) for (path,) in rows]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    made = Folder(tmp_path)
    whole = inspection.content

    def watched(path):
        made.read.append(path.name)
        return whole(path)

    monkeypatch.setattr(inspection, "content", watched)
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
    assert folder.write(memory=False) == ["a.png", "b.png", "c.png", "d\udcff.png", "t.png"]


def test_with_and_without_memory_the_files_are_the_same(folder):
    folder.add("a.png", "b.png", "e.png", "t.png", "d\udcff.png")
    (folder.root / "c.png").write_bytes((folder.root / "a.png").read_bytes())
    folder.write(memory=False)
    plain = folder.result()
    assert sorted(plain) == ["dataset.json", "duplicates.csv", "manifest.csv", "rejected.csv"]
    assert b"c.png,a.png" in plain["duplicates.csv"]
    for _ in range(2):
        folder.write()
        assert folder.result() == plain


def test_the_smallest_side_is_judged_anew_without_reading(folder):
    folder.add("a.png")
    folder.add("b.png", shade=3)
    Image.new("RGB", (12, 12)).save(folder.root / "c.png")
    folder.write()
    assert folder.write(min_side=10) == []
    assert manifest.load(folder.out).paths.tolist() == ["c.png"]
    assert folder.write(min_side=9) == []
    assert len(manifest.load(folder.out)) == 3


def test_files_that_are_gone_are_forgotten(folder):
    folder.add("a.png", "b.png", "t.png")
    folder.write()
    assert folder.known() == ["a.png", "b.png", "t.png"]
    (folder.root / "a.png").unlink()
    (folder.root / "t.png").unlink()
    assert folder.write() == []
    assert folder.known() == ["b.png"]


def test_a_file_put_in_the_place_of_another_is_read(folder):
    folder.add("a.png", "b.png")
    times = (folder.root / "a.png").stat()
    folder.write()
    Image.new("RGB", (9, 9), (77, 0, 0)).save(folder.root.parent / "new.png")
    (folder.root.parent / "new.png").replace(folder.root / "a.png")
    os.utime(folder.root / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folder.write() == ["a.png"]


def test_what_could_not_be_read_is_tried_again(folder, monkeypatch):
    folder.add("a.png", "b.png")
    regular = content.regular

    def failing(path):
        if path.name == "a.png":
            raise content.UnreadableError("input/output error")
        return regular(path)

    monkeypatch.setattr(content, "regular", failing)
    folder.write()
    assert manifest.load(folder.out).paths.tolist() == ["b.png"]
    assert folder.known() == ["b.png"]
    monkeypatch.setattr(content, "regular", regular)
    assert folder.write() == ["a.png"]
    assert len(manifest.load(folder.out)) == 2


def test_a_file_that_changes_while_it_is_read_is_neither_used_nor_remembered(folder, monkeypatch):
    folder.add("a.png", "b.png")
    pixels = inspection.pixels

    def slow(image, at_least):
        if not (folder.root / "late").exists():
            (folder.root / "late").touch()
            os.utime(folder.root / "a.png", ns=(1, 1))
        return pixels(image, at_least)

    monkeypatch.setattr(inspection, "pixels", slow)
    found = inspection.inspect(folder.root / "a.png")
    assert found == inspection.Seen("", reason="it changed while it was read")
    assert inspection.inspect(folder.root / "a.png").reason == ""


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_large_files_are_read_in_parts_to_the_same_end(folder, monkeypatch, limit):
    monkeypatch.setattr(content, "_IN_MEMORY", limit)
    folder.add("a.png", "t.png")
    folder.write()
    rows = manifest.load(folder.out)
    assert rows.sha256[0] == file_digest(rows.file(0))
    image, problem = manifest.verified_image(rows, 0)
    assert problem is None
    assert np.array_equal(np.array(image), np.array(Image.open(rows.file(0))))


def test_huge_images_are_decoded_one_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(inspection, "_HUGE", 100)
    pixels, at_work, most = inspection.pixels, [], {"huge": 0, "small": 0}

    def watched(image, at_least):
        kind = "huge" if image.height > 20 else "small"
        at_work.append(kind)
        most[kind] = max(most[kind], at_work.count(kind))
        time.sleep(0.02)
        at_work.remove(kind)
        return pixels(image, at_least)

    monkeypatch.setattr(inspection, "pixels", watched)
    folder.add(*[f"{index}.png" for index in range(8)])
    folder.add(*[f"{index}h.png" for index in range(8)], shade=30)
    folder.write()
    assert most["huge"] == 1 < most["small"]


# ------------------------------------------------------------------------------------- trouble


def test_a_damaged_memory_is_told_and_changes_nothing(folder, caplog):
    folder.add("a.png", "t.png")
    folder.write(memory=False)
    plain = folder.result()
    folder.memory.parent.mkdir()
    folder.memory.write_bytes(b"no database at all" * 100)
    assert folder.write() == ["a.png", "t.png"]
    assert folder.result() == plain
    assert "seen.sqlite: file is not a database" in caplog.text


def test_a_memory_that_is_held_by_another_is_done_without(folder, caplog, monkeypatch):
    folder.add("a.png", "t.png")
    folder.write()
    plain = folder.result()
    monkeypatch.setattr(seen, "_WAIT_SECONDS", 0.1)
    holder = sqlite3.connect(folder.memory, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert folder.write() == ["a.png", "t.png"]
    assert "database is locked" in caplog.text
    holder.close()
    assert folder.write() == []
    assert folder.result() == plain


def test_a_memory_that_cannot_be_made_is_done_without(folder, caplog):
    folder.add("a.png")
    folder.memory.parent.write_text("a file where the folder should be")
    assert folder.write() == ["a.png"]
    assert len(caplog.records) == 1


# ----------------------------------------------------------------------------- other processes

PREPARE = """
import sys, time
from pathlib import Path
from salmask.data import inspection
from salmask.data import prepare as preparation
from salmask.datasets.listing import ListedFile, Listing
from salmask.provenance import file_digest
preparation._CHUNK = 16
whole, root, out, memory = inspection.content, *map(Path, sys.argv[1:4])
def slow(path):
    time.sleep(0.02)
    return whole(path)
inspection.content = slow
files = [ListedFile(path.name, -1, "train") for path in sorted(root.iterdir())]
preparation.write(Listing(root, (), files), "x", out, 0.9, memory=memory)
"""


def start(folder: Folder, out) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder.root), str(out), str(folder.memory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def remembered(folder: Folder) -> int:
    return len(folder.known()) if folder.memory.exists() else 0


@pytest.mark.timeout(120)
def test_a_killed_preparation_goes_on(folder, monkeypatch):
    folder.add(*[f"{index:03d}.png" for index in range(400)], "t.png")
    folder.write(memory=False)
    plain = folder.result()
    process = start(folder, folder.out)
    while True:
        assert process.poll() is None, process.communicate()[0]
        try:
            if remembered(folder) >= 32:
                break
        except sqlite3.OperationalError as error:  # it is just being made
            assert "no such table" in str(error)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    known = remembered(folder)
    assert 32 <= known < 401
    monkeypatch.setattr(preparation, "_CHUNK", 16)
    assert len(folder.write()) == 401 - known
    assert folder.result() == plain


@pytest.mark.timeout(120)
def test_two_at_once_do_not_disturb_each_other(folder):
    folder.add(*[f"{index:03d}.png" for index in range(100)], "t.png")
    folder.write(memory=False)
    plain = folder.result()
    outs = [folder.out.with_name(name) for name in ("one", "two", "three")]
    for process in [start(folder, out) for out in outs]:
        said = process.communicate()[0]
        assert process.returncode == 0 and "sqlite" not in said, said
    for folder.out in outs:
        assert folder.result() == plain
    assert len(folder.known()) == 101
