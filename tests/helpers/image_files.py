"""Hand-made image files, written byte by byte where pillow cannot write them."""

import struct
import zlib
from io import BytesIO

from PIL import Image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG file of unfiltered rows (each with its leading 0)."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", head),
        *chunks,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(*colours: tuple[int, ...]) -> Image.Image:
    """A palette image of its last colour."""
    image = Image.new("P", (16, 16), len(colours) - 1)
    image.putpalette([value for colour in colours for value in colour])
    return image
