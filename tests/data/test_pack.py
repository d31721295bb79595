"""Images in a few large files: the same bytes as from the image files, however often killed."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.data import location, manifest, pack
from salmask.data.loader import Schedule, evaluation_images, training_views
from salmask.data.manifest import is_replacement, read_image, verified_image
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from salmask.errors import DataGoneError, UserError
from salmask.params.view import ViewConfig

CPU = torch.device("cpu")
NAMES = ("cat/a.jpg", "cat/b.png", f"{'long' * 40}/c.jpg", "naïve/d.png", "bytes/\udcff.jpg")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Two files in a shard, so that there are three shards."""
    monkeypatch.setattr(pack, "_SHARD_ROWS", 2)


@pytest.fixture
def rows(tmp_path):
    """A manifest of five images of several formats, without a pack."""
    rng, files = np.random.default_rng(0), []
    for number, name in enumerate(NAMES):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 8 * number, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        files.append(ListedFile(name, number % 2, "train"))
    listing = Listing(tmp_path / "images", ("a", "b"), files)
    write_manifest(listing, "toy", tmp_path / "data", 0)
    return manifest.load(tmp_path / "data")


def packed(rows, tmp_path):
    """The manifest after its images were packed."""
    folder = tmp_path / "pack"
    pack.write(folder, rows.root, rows.paths, rows.sha256, rows.digest)
    location.save(rows.root, tmp_path / "data", tmp_path, folder)
    return manifest.load(tmp_path / "data")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(rows) -> list[bytes]:
    """The pixels of everything that stages read from a manifest."""
    ids = torch.arange(len(rows))
    images = [read_image(rows, row, side) for row in ids.tolist() for side in (None, 16)]
    images += [verified_image(rows, row, 16)[0] for row in ids.tolist()]
    assert not any(map(is_replacement, images))
    view, schedule = ViewConfig(size=16, grid=4), Schedule(0, ids, 2, 1)
    options = {"images": "stream", "device": CPU, "workers": 2}
    views = [b.crops["key"] for b in training_views(rows, view, schedule, **options)]
    centres = evaluation_images(rows, ids, 16, 20, batch=2, device=CPU, workers=2)
    return [image.tobytes() for image in images] + [t.numpy().tobytes() for t in (*views, *centres)]


def test_everything_that_is_read_has_the_same_bytes(rows, tmp_path):
    from_files, from_pack = decoded(rows), packed(rows, tmp_path)
    assert from_pack.pack is not None
    assert len(list((tmp_path / "pack").glob("*.tar"))) == 3
    assert decoded(from_pack) == from_files
    shutil.rmtree(rows.root)
    assert decoded(manifest.load(tmp_path / "data")) == from_files


def test_other_programs_can_unpack_the_shards(rows, tmp_path):
    packed(rows, tmp_path)
    (tmp_path / "unpacked").mkdir()
    for shard in sorted((tmp_path / "pack").glob("*.tar")):
        subprocess.run(["tar", "-xf", shard, "-C", tmp_path / "unpacked"], check=True)
    for name in NAMES:
        original = (tmp_path / "images" / name).read_bytes()
        assert (tmp_path / "unpacked" / name).read_bytes() == original


def test_an_interrupted_pack_is_continued_and_ends_in_the_same_bytes(rows, tmp_path, monkeypatch):
    packed(rows, tmp_path)
    whole, read, copied = content(tmp_path / "pack"), pack._content, []
    shutil.rmtree(tmp_path / "pack")

    def stop_at_the_fourth(root, name, sha256):
        if name == NAMES[3]:
            raise KeyboardInterrupt
        return read(root, name, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(pack, "_content", stop_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            packed(rows, tmp_path)
    assert sorted(content(tmp_path / "pack")) == ["00000.tar", "00001.tar.partial"]
    assert pack.open_pack(tmp_path / "pack", rows.digest) is None
    monkeypatch.setattr(pack, "_content", lambda *a: copied.append(a[1]) or read(*a))
    packed(rows, tmp_path)
    assert copied == list(NAMES[2:]) and content(tmp_path / "pack") == whole
    packed(rows, tmp_path)
    (tmp_path / "pack/00000.tar").unlink()
    packed(rows, tmp_path)
    assert copied == [*NAMES[2:], *NAMES[:2]] and content(tmp_path / "pack") == whole


def test_a_shard_of_other_files_is_written_again(rows, tmp_path):
    (tmp_path / "pack").mkdir()
    for number, bad in enumerate((b"", b"no archive")):
        (tmp_path / f"pack/{number:05d}.tar").write_bytes(bad)
    with tarfile.open(tmp_path / "pack/00002.tar", "w") as shard:
        shard.add(rows.file(0), "other.jpg")
    assert decoded(packed(rows, tmp_path)) == decoded(rows)


def test_a_file_that_changed_or_vanished_is_not_packed(rows, tmp_path):
    rows.file(1).write_bytes(rows.file(0).read_bytes())
    with pytest.raises(UserError, match=r"cat/b\.png has changed since it was listed"):
        packed(rows, tmp_path)
    rows.file(1).unlink()
    with pytest.raises(UserError, match=r"cat/b\.png cannot be packed \(it no longer exists\)"):
        packed(rows, tmp_path)
    shutil.rmtree(rows.root)
    with pytest.raises(DataGoneError, match="does not exist: mount it"):
        packed(rows, tmp_path)


def test_a_damaged_copy_is_never_decoded(rows, tmp_path, caplog):
    from_pack = packed(rows, tmp_path)
    start, size = from_pack.pack.places[1]
    with (tmp_path / "pack/00000.tar").open("r+b") as shard:
        shard.seek(int(start + size // 2))
        shard.write(b"!" if shard.read(1) != b"!" else b"?")
    assert is_replacement(read_image(from_pack, 1)) and not is_replacement(read_image(from_pack, 0))
    assert "00000.tar is damaged: remove that file" in verified_image(from_pack, 1)[1]
    assert caplog.text.count("00000.tar is damaged") == 1


@pytest.mark.parametrize("damage", ["no pack", "no index", "index", "content", "manifest"])
def test_without_a_usable_pack_the_files_are_read(rows, tmp_path, damage, caplog):
    expected, index = decoded(rows), tmp_path / "pack/index.safetensors"
    packed(rows, tmp_path)
    if damage == "no pack":
        shutil.rmtree(tmp_path / "pack")
    elif damage == "no index":
        index.unlink()
    elif damage == "index":
        index.write_bytes(index.read_bytes()[:30])
    elif damage == "content":
        index.write_bytes(index.read_bytes()[:-1] + b"!")
    else:
        pack.write(tmp_path / "pack", rows.root, rows.paths, rows.sha256, "another")
    again = manifest.load(tmp_path / "data")
    assert again.pack is None and decoded(again) == expected
    assert "the image files are read" in caplog.text
    shutil.rmtree(rows.root)
    with pytest.raises(UserError, match="does not exist: mount it"):
        manifest.load(tmp_path / "data")


@pytest.mark.parametrize("read", [read_image, verified_image])
def test_a_shard_that_vanishes_ends_the_work(rows, tmp_path, read):
    from_pack = packed(rows, tmp_path)
    (tmp_path / "pack/00001.tar").unlink()
    read(from_pack, 0)
    with pytest.raises(DataGoneError, match=r"00001.tar with images does not exist: restore it"):
        read(from_pack, 2)


def test_there_are_never_too_many_shards(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_MAX_SHARDS", 2)
    assert packed(rows, tmp_path).pack.shard_rows == 3
    assert len(list((tmp_path / "pack").glob("*.tar"))) == 2
