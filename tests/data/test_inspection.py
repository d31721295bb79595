"""Files that are not usable images are rejected with a reason, without waiting for a pipe."""

import os
import socket
import struct
import subprocess
import sys

import pytest
from PIL import Image

from salmask.data.decode import MAX_PIXELS, decode
from salmask.data.file_bytes import ImageError
from salmask.data.inspection import inspect
from tests.helpers.image_files import palette, png, saved

PHOTO = Image.effect_noise((64, 48), 60).convert("RGB")
BAD = {
    "zero bytes": (b"", "empty file"),
    "text": (b"no image at all", r"not an image \(supported formats: JPEG, PNG"),
    "html": (b"<!DOCTYPE html><html>404</html>", "not an image"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "zeros": (bytes(3000), "not an image"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "not an image"),
    "truncated jpeg": (saved(PHOTO, "JPEG")[:1500], r"truncated: .*bytes not processed"),
    "truncated progressive": (
        saved(PHOTO, "JPEG", progressive=True)[:-40], r"truncated: .*bytes not processed"
    ),
    "truncated png": (saved(PHOTO, "PNG")[:-200], "truncated: "),
    "truncated gif": (saved(PHOTO, "GIF")[:-200], "truncated: "),
    "truncated bmp": (saved(PHOTO, "BMP")[:-200], "truncated: "),
    "truncated tiff": (saved(PHOTO, "TIFF")[:-200], r"truncated"),
    "truncated webp": (saved(PHOTO, "WEBP")[:-200], "broken: "),
    "truncated header": (saved(PHOTO, "JPEG")[:10], "truncated"),
    "32-bit integers": (
        saved(Image.new("I", (9, 9), 70000), "TIFF"), "32-bit integers of unknown range.*16 bits"
    ),
    "floats": (saved(Image.new("F", (9, 9), 0.5), "TIFF"), "floating-point numbers of unknown"),
    "png bomb": (
        png(60000, 60000, 8, 2, bytes(99)), r"^too large: 60000x60000 px, more than 178,956,970$"
    ),
    "gif bomb": (
        saved(palette((0, 0, 0)), "GIF").replace(struct.pack("<HH", 16, 16),
                                                 struct.pack("<HH", 60000, 60000)),
        "too large: 60000x60000 px",
    ),
    "webp bomb": (
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<II", 10, 0)
        + struct.pack("<I", 59999)[:3] * 2 + bytes(8), "broken: |too large: "
    ),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_rejected_with_a_reason(tmp_path, kind):
    content, reason = BAD[kind]
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        decode(tmp_path / "bad.jpg")
    inspection = inspect(tmp_path / "bad.jpg")
    assert inspection.reason == str(error.value) and len(inspection.reason) < 200
    assert str(tmp_path) not in inspection.reason and "object at" not in inspection.reason
    assert (inspection.width, inspection.sha256) == (0, "")


def test_the_largest_size_is_accepted(tmp_path):
    assert MAX_PIXELS == 2 * 5 * 17895697
    (tmp_path / "most.png").write_bytes(png(MAX_PIXELS // 5, 5, 1, 0, bytes(9)))
    (tmp_path / "over.png").write_bytes(png(MAX_PIXELS // 5 + 1, 5, 1, 0, bytes(9)))
    assert inspect(tmp_path / "most.png").reason.startswith("truncated")
    assert inspect(tmp_path / "over.png").reason.startswith("too large")


def test_anything_but_a_file_is_rejected_without_opening_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        reasons = {
            "pipe.jpg": "a pipe, not a file",
            "folder.jpg": "a folder, not a file",
            "device.jpg": "a device, not a file",
            "socket.jpg": "a socket, not a file",
            "broken.jpg": "a broken link",
            "loop.jpg": "a link to itself",
            "absent.jpg": "it no longer exists",
        }
        for name, reason in reasons.items():
            inspection = inspect(tmp_path / name)
            assert (inspection.reason, inspection.state) == (reason, ""), name


AS_NOBODY = """
import os, sys
from pathlib import Path
from salmask.data.inspection import inspect
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for name in ("file.jpg", "folder", "folder/below.jpg"):
    print(inspect(Path(sys.argv[1], name)).reason)
"""


def test_unreadable_files_are_rejected(public_folder):
    (public_folder / "folder").mkdir()
    for name in ("file.jpg", "folder/below.jpg"):
        Image.new("RGB", (9, 9)).save(public_folder / name)
        (public_folder / name).chmod(0)
    (public_folder / "folder").chmod(0)
    try:
        process = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(public_folder)], capture_output=True, text=True
        )
    finally:
        (public_folder / "folder").chmod(0o755)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "permission denied",
        "permission denied: a folder that cannot be listed",
        "permission denied",
    ]
