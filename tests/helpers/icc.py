"""Hand-made colour profiles (ICC v2, three primaries and a gamma), and their colours in sRGB."""

import struct

import numpy as np

# Primaries as XYZ under D50, one column each for red, green and blue.
ADOBE_RGB = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
WHITE = (0.9642, 1.0, 0.82491)
GAMMA = 563 / 256


def _xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def _curve() -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + b"\0\0"


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made for a test"
    describe = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(79)
    tags = {b"desc": describe, b"cprt": b"text\0\0\0\0" + text + b"\0", b"wtpt": _xyz(WHITE)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ "
    )
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(v * 65536) for v in WHITE))
    return head.ljust(128, b"\0") + table + body


def of_primaries(primaries: np.ndarray) -> bytes:
    """An RGB profile."""
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags = {name: _xyz(column) for name, column in zip(names, primaries.T, strict=True)}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve()))


def of_gray() -> bytes:
    """A gray profile."""
    return _profile(b"GRAY", {b"kTRC": _curve()})


def in_srgb(colour, primaries: np.ndarray) -> np.ndarray:
    """What an 8-bit colour (3,) of these primaries is in sRGB, by the formulas."""
    light = np.linalg.inv(SRGB) @ primaries @ (np.array(colour) / 255) ** GAMMA
    light = light.clip(0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return 255 * curve
