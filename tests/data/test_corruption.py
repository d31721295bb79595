"""Damaged JPEG files: each is either rejected or listed as pillow decodes it."""

import csv
import hashlib
import random
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from salmask.data import manifest
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from tests.helpers.image_files import saved

COUNT = 200
ENCODINGS = [
    {"quality": 90},
    {"quality": 85, "subsampling": 0},
    {"quality": 85, "progressive": True},
    {"quality": 95, "progressive": True, "subsampling": 1, "optimize": True},
    {"quality": 90, "restart_marker_rows": 1},
]


def photograph(seed: int) -> Image.Image:
    """A smooth coloured scene with a little noise, 320x240 px."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:240, 0:320] / 240
    pixels = np.zeros((240, 320, 3))
    for _ in range(12):
        v, u, size = rng.uniform(0, 1), rng.uniform(0, 1.3), rng.uniform(0.05, 0.4)
        blob = np.exp(-((y - v) ** 2 + (x - u) ** 2) / size**2)
        pixels += blob[..., None] * rng.uniform(-90, 130, 3)
    pixels += rng.normal(0, 6, (240, 320, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice([1, 1, 2, 8, 64])):
        data[dice.randrange(len(data))] ^= dice.randrange(1, 256)


def delete(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.choice([1, 7, 100, 3000])]


def double(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    data[at:at] = data[at : at + dice.choice([1, 7, 100, 3000])]


def zero(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    span = len(data[at : at + dice.choice([1, 7, 100, 3000])])
    data[at : at + span] = bytes(span)


def cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


DAMAGES = [flip, delete, double, zero, cut]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The folder of damaged files, its manifest, the rejected files, and the seconds it took."""
    folder = tmp_path_factory.mktemp("damaged")
    whole = [saved(photograph(i), "JPEG", **how) for i, how in enumerate(ENCODINGS * 2)]
    assert all(8_000 < len(content) < 80_000 for content in whole)
    for seed in range(COUNT):
        dice = random.Random(seed)
        data = bytearray(whole[seed // len(DAMAGES) % len(whole)])
        while data in whole:  # zeros may replace zeros
            DAMAGES[seed % len(DAMAGES)](data, dice)
        (folder / f"{seed:03d}.jpg").write_bytes(data)
    names = [f"{seed:03d}.jpg" for seed in range(COUNT)]
    begin = time.monotonic()
    listing = Listing(folder, (), [ListedFile(name, -1, "train") for name in names])
    write_manifest(listing, "damaged", folder / "out", max_rejected=1)
    seconds = time.monotonic() - begin
    with (folder / "out" / "rejected.csv").open() as stream:
        rejected = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    return folder, manifest.load(folder / "out"), rejected, seconds


def independent(content: bytes) -> np.ndarray | None:
    """The pixels (H, W, 3) as pillow alone decodes them, or None."""
    try:
        with Image.open(BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except Exception:
        return None


@pytest.mark.timeout(120)
def test_no_damaged_file_is_lost_or_listed_twice(damaged):
    _, rows, rejected, seconds = damaged
    assert sorted([*rows.paths, *rejected]) == [f"{seed:03d}.jpg" for seed in range(COUNT)]
    assert 20 < len(rejected) < COUNT - 20  # enough of both kinds
    assert seconds < 60  # it takes half a second on an idle machine


@pytest.mark.timeout(120)
def test_a_listed_damaged_file_is_as_its_row_describes(damaged):
    _, rows, _, _ = damaged
    for row in range(len(rows)):
        content = rows.file(row).read_bytes()
        assert rows.sha256[row] == hashlib.sha256(content).hexdigest()
        pixels = independent(content)
        assert pixels is not None, rows.paths[row]
        assert rows.sizes[row].tolist() == list(pixels.shape[:2])
        verified, problem = manifest.verified_image(rows, row)
        assert problem is None
        for image in (manifest.read_image(rows, row), manifest.read_image(rows, row), verified):
            assert np.array_equal(np.array(image), pixels), rows.paths[row]
        small = [np.array(manifest.read_image(rows, row, at_least=60)) for _ in range(2)]
        assert np.array_equal(*small)


@pytest.mark.timeout(120)
def test_a_rejected_damaged_file_cannot_be_decoded(damaged):
    folder, _, rejected, _ = damaged
    for name, reason in rejected.items():
        assert reason and str(folder) not in reason
        assert independent((folder / name).read_bytes()) is None, (name, reason)
