"""Decoding of every kind of image file to upright RGB."""

import struct
import time

import numpy as np
import pytest
from PIL import Image

from salmask.data import manifest
from salmask.data.decode import decode
from salmask.data.inspection import inspect
from salmask.data.prepare import write_manifest
from salmask.datasets import ListedFile, Listing
from tests.helpers.icc import ADOBE_RGB, DISPLAY_P3, SRGB, in_srgb, of_gray, of_primaries
from tests.helpers.image_files import chunk, palette, png, saved

RED = (254, 0, 0)  # pure red after JPEG's rounding


def oriented(value) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture
def shown(tmp_path):
    """A function from the bytes of a file to its pixels (H, W, 3)."""

    def show(content: bytes, name: str = "image.png", **options) -> np.ndarray:
        (tmp_path / name).write_bytes(content)
        image = decode(tmp_path / name, **options)
        assert image.mode == "RGB"
        return np.array(image)

    return show


# ------------------------------------------------------------------------------------- colours


def plain(mode: str, colour, **info) -> Image.Image:
    image = Image.new(mode, (16, 16), colour)
    image.info |= info
    return image


HALF_OVER_WHITE = (228, 178, 153)  # half of (200, 100, 50), half of 255

KINDS = {
    "RGB png": (saved(plain("RGB", (200, 100, 50)), "PNG"), (200, 100, 50)),
    "RGB jpeg": (saved(plain("RGB", RED), "JPEG"), RED),
    "RGB webp": (saved(plain("RGB", (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50)),
    "RGB bmp": (saved(plain("RGB", (200, 100, 50)), "BMP"), (200, 100, 50)),
    "RGB tiff": (saved(plain("RGB", (200, 100, 50)), "TIFF"), (200, 100, 50)),
    "RGB lzw": (
        saved(plain("RGB", (200, 100, 50)), "TIFF", compression="tiff_lzw"), (200, 100, 50)
    ),
    "16-bit RGB png": (png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 51400, 25700, 12850)),
                       (200, 100, 50)),
    "gray png": (saved(plain("L", 120), "PNG"), (120,) * 3),
    "gray jpeg": (saved(plain("L", 120), "JPEG"), (120,) * 3),
    "1-bit white": (saved(plain("1", 1), "PNG"), (255,) * 3),
    "1-bit black": (saved(plain("1", 0), "TIFF", compression="group4"), (0,) * 3),
    # inverted, as in Adobe's files
    "CMYK jpeg": (saved(plain("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
    "CMYK tiff": (saved(plain("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "YCbCr tiff": (saved(plain("YCbCr", (76, 85, 255)), "TIFF"), RED),
    "LAB tiff": (saved(Image.new("RGB", (16, 16), (180, 90, 60)).convert("LAB"), "TIFF"),
                 (180, 90, 60)),
    "palette gif": (saved(palette((9, 9, 9), (0, 255, 0)), "GIF"), (0, 255, 0)),
    "palette png": (saved(palette((9, 9, 9), (0, 255, 0)), "PNG"), (0, 255, 0)),
    "RGBA clear": (saved(plain("RGBA", (200, 100, 50, 0)), "PNG"), (255,) * 3),
    "RGBA half": (saved(plain("RGBA", (200, 100, 50, 128)), "PNG"), HALF_OVER_WHITE),
    "RGBA full": (saved(plain("RGBA", (200, 100, 50, 255)), "PNG"), (200, 100, 50)),
    "RGBA webp": (
        saved(plain("RGBA", (200, 100, 50, 128)), "WEBP", lossless=True), HALF_OVER_WHITE
    ),
    "RGBA tiff": (saved(plain("RGBA", (200, 100, 50, 128)), "TIFF"), HALF_OVER_WHITE),
    "LA clear": (saved(plain("LA", (120, 0)), "PNG"), (255,) * 3),
    "LA half": (saved(plain("LA", (120, 128)), "PNG"), (187,) * 3),
    "16-bit LA": (png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 30840, 65535)), (120,) * 3),
    "RGB with a clear colour": (saved(plain("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
                                (255,) * 3),
    "RGB with another clear colour": (
        saved(plain("RGB", (1, 2, 3)), "PNG", transparency=(3, 2, 1)), (1, 2, 3)
    ),
    "16-bit RGB with a clear colour": (
        png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 51400, 25700, 12850),
            chunk(b"tRNS", struct.pack(">3H", 51400, 25700, 12850))),
        (255,) * 3,
    ),
    "gray with a clear level": (saved(plain("L", 7), "PNG", transparency=7), (255,) * 3),
    "1-bit with a clear level": (saved(plain("1", 0), "PNG", transparency=0), (255,) * 3),
    "palette with a clear entry": (
        saved(palette((9, 9, 9), (0, 255, 0)), "PNG", transparency=1), (255,) * 3
    ),
    "palette with alphas": (
        saved(palette((9, 9, 9), (200, 100, 50)), "PNG", transparency=b"\xff\x80"), HALF_OVER_WHITE
    ),
    "gif with a clear entry": (
        saved(palette((9, 9, 9), (0, 255, 0)), "GIF", transparency=1), (255,) * 3
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb_over_white(shown, kind):
    content, expected = KINDS[kind]
    pixels = shown(content)
    assert pixels[0, 0].tolist() == pytest.approx(expected, abs=2)
    assert (pixels == pixels[0, 0]).all()


GRAYS = np.array([[0, 12850, 32896, 65535]], dtype=np.uint16)  # 257 times 0, 50, 128, 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_to_8_bits(shown, kind):
    pixels = shown(saved(Image.fromarray(GRAYS), kind))
    assert np.abs(pixels[0].astype(int) - [[0], [50], [128], [255]]).max() <= 1


def test_16_bit_gray_of_the_other_byte_order(shown):
    big = saved(Image.frombytes("I;16B", (4, 1), GRAYS.astype(">u2").tobytes()), "TIFF")
    assert big.startswith(b"MM")
    assert np.abs(shown(big)[0, :, 0].astype(int) - [0, 50, 128, 255]).max() <= 1


def test_a_transparent_level_of_16_bits_becomes_white(shown):
    rows = b"\0" + GRAYS.astype(">u2").tobytes()
    pixels = shown(png(4, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 12850))))
    assert np.abs(pixels[0, :, 0].astype(int) - [0, 255, 128, 255]).max() <= 1


def tiff_gray(bits: int, photometric: int, data: bytes, width: int) -> bytes:
    """An uncompressed TIFF of one row."""
    fields = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8),
              (277, 1), (278, 1), (279, len(data))]  # fmt: skip
    data += bytes(len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return (
        head
        + struct.pack("<H", len(fields))
        + b"".join(
            struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in fields
        )
        + bytes(4)
    )


def test_12_bits_and_zero_as_white(shown):
    packed = bytes([0x80, 0x0F, 0xFF])  # 0x800, 0xFFF
    assert shown(tiff_gray(12, 1, packed, 2))[0, :, 0].tolist() == [128, 255]
    assert shown(tiff_gray(16, 0, GRAYS.tobytes(), 4))[0, :, 0].tolist() == [255, 205, 127, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3], ids=["Adobe RGB", "Display P3"])
def test_an_embedded_profile_is_applied(shown, kind, primaries):
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    for colour in [(200, 100, 50), (30, 180, 90), (128, 128, 128)]:
        content = saved(plain("RGB", colour), kind, icc_profile=of_primaries(primaries), **options)
        expected = in_srgb(colour, primaries)
        assert np.abs(shown(content)[0, 0] - expected).max() < 2
    assert np.abs(in_srgb((200, 100, 50), primaries) - (200, 100, 50)).max() > 10


def test_a_gray_profile_is_applied_to_gray_images_only(shown):
    assert shown(saved(plain("L", 20), "PNG", icc_profile=of_gray()))[0, 0].tolist() == [12] * 3
    content = saved(plain("RGB", (20, 20, 20)), "PNG", icc_profile=of_gray())
    assert shown(content)[0, 0].tolist() == [20] * 3


@pytest.mark.parametrize(
    "profile",
    [b"junk", of_primaries(ADOBE_RGB)[:300], bytes(5000), of_primaries(SRGB)],
    ids=["junk", "cut", "zeros", "sRGB itself"],
)
def test_a_broken_profile_or_srgb_changes_nothing(shown, profile):
    content = saved(plain("RGB", (200, 100, 50)), "PNG", icc_profile=profile)
    assert shown(content)[0, 0].tolist() == [200, 100, 50]


def test_transparency_and_profile_together(shown):
    content = saved(plain("RGBA", (0, 0, 0, 128)), "PNG", icc_profile=of_primaries(ADOBE_RGB))
    half = in_srgb((127, 127, 127), ADOBE_RGB)
    assert np.abs(shown(content)[0, 0] - half).max() < 2


# --------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"),
    # position (x, y) of the file's upper left pixel in the upright image
    [(1, (0, 0)), (2, (3, 0)), (3, (3, 1)), (4, (0, 1)),
     (5, (0, 0)), (6, (1, 0)), (7, (1, 3)), (8, (0, 3))],
)  # fmt: skip
def test_images_are_rotated_by_their_orientation(shown, tmp_path, kind, orientation, corner):
    image = Image.new("RGB", (4, 2), "blue")
    image.putpixel((0, 0), (255, 0, 0))
    pixels = shown(saved(image, kind, exif=oriented(orientation)))
    assert pixels.shape == ((4, 2, 3) if orientation >= 5 else (2, 4, 3))
    assert pixels[corner[1], corner[0]].tolist() == [255, 0, 0]
    inspection = inspect(tmp_path / "image.png")
    assert (inspection.width, inspection.height) == ((2, 4) if orientation >= 5 else (4, 2))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(shown, value):
    assert shown(saved(plain("RGB", 0), "PNG", exif=oriented(value))).shape == (16, 16, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # a warning of pillow
def test_broken_exif_is_ignored(shown):
    content = saved(
        Image.new("RGB", (4, 2), "white"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    assert shown(content).shape == (2, 4, 3)


def test_the_manifest_has_the_upright_size(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=oriented(6))
    files = [ListedFile("turned.jpg", -1, "train")]
    write_manifest(Listing(tmp_path, (), files), "x", tmp_path / "data", 0)
    assert manifest.load(tmp_path / "data").sizes.tolist() == [[40, 20]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_used(shown, kind):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in (RED, "blue"))
    content = saved(first, kind, save_all=True, append_images=[second])
    assert shown(content)[8, 8].tolist() == pytest.approx(RED, abs=2)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(None, (400, 800)), (400, (400, 800)), (200, (200, 400)), (60, (100, 200))],
)
def test_a_large_jpeg_is_decoded_no_larger_than_needed(shown, tmp_path, at_least, size):
    content = saved(Image.new("RGB", (800, 400), "teal"), "JPEG")
    assert shown(content, at_least=at_least).shape[:2] == size
    inspection = inspect(tmp_path / "image.png")
    assert (inspection.width, inspection.height, inspection.reason) == (800, 400, "")


def test_a_jpeg_of_100_megapixels(tmp_path):
    Image.new("L", (10000, 10000), 77).save(tmp_path / "large.jpg")
    begin = time.monotonic()
    image = decode(tmp_path / "large.jpg", at_least=224)
    assert time.monotonic() - begin < 10  # it takes 0.1 s on an idle machine
    assert image.size == (1250, 1250) and image.getpixel((600, 600)) == (77, 77, 77)
    inspection = inspect(tmp_path / "large.jpg")
    assert (inspection.width, inspection.height, inspection.reason) == (10000, 10000, "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("name", ["image.jpg", "image.tif"])
def test_the_format_is_detected_from_the_content(shown, kind, name):
    assert shown(saved(plain("RGB", "white"), kind), name).min() >= 250
