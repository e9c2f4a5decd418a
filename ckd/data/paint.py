"""The example's pictures: a shape in a colour and a pattern. Whole numbers only, so they are the same everywhere."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

SIDE = 32
SHAPES = 6
PATTERNS = 6
#: In the order of the rainbow: neighbours are alike.
COLOURS = (
    (214, 48, 49),
    (232, 126, 34),
    (246, 205, 70),
    (130, 190, 60),
    (34, 139, 84),
    (38, 180, 180),
    (52, 120, 220),
    (60, 50, 160),
    (150, 70, 190),
    (235, 110, 170),
)

BACKGROUND = 225


def paint(
    shape: int, colour: int, pattern: int, shift: tuple[int, int], light: int, noise: Ints
) -> npt.NDArray[np.uint8]:
    """A picture (32, 32, 3).

    Args:
        shape: below `SHAPES`; bar, square, disc, wide bar, diamond, triangle.
        colour: index into `COLOURS`.
        pattern: below `PATTERNS`; plain, rows, columns, diagonals, checks, dots.
        shift: pixels right and down from the middle.
        light: added to the shape's colour.
        noise: (32, 32) added to every pixel's three values.
    """
    inside = _inside(shape, *shift)
    pixels = np.full((SIDE, SIDE, 3), BACKGROUND, dtype=np.int64)
    pixels[inside] = np.array(COLOURS[colour]) + light
    pixels[inside & _dark(pattern, shift[0])] //= 3
    return (pixels + noise[:, :, None]).clip(0, 255).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An RGB picture (h, w, 3), smaller than 64 KiB, as PNG with its pixels stored: no compressor's version matters."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    stored = b"\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _grid(x: int, y: int) -> tuple[Ints, Ints]:
    """(32, 32) y and x coordinates, from `y` and `x` on."""
    down, right = np.indices((SIDE, SIDE), dtype=np.int64)
    return down + y, right + x


def _inside(shape: int, dx: int, dy: int) -> npt.NDArray[np.bool_]:
    y, x = _grid(-SIDE // 2 - dx, -SIDE // 2 - dy)
    shapes = (
        (np.abs(x) <= 5) & (np.abs(y) <= 12),
        (np.abs(x) <= 10) & (np.abs(y) <= 10),
        x * x + y * y <= 121,
        (np.abs(x) <= 12) & (np.abs(y) <= 6),
        np.abs(x) + np.abs(y) <= 13,
        (y >= -10) & (y <= 10) & (2 * np.abs(x) <= y + 12),
    )
    return shapes[shape]


def _dark(pattern: int, shift: int) -> npt.NDArray[np.bool_]:
    y, x = _grid(shift + SIDE, shift + SIDE)
    patterns = (
        np.zeros((SIDE, SIDE), dtype=bool),
        y % 6 < 3,
        x % 6 < 3,
        (x + y) % 8 < 4,
        (x // 4 + y // 4) % 2 == 0,
        (x % 6 < 2) & (y % 6 < 2),
    )
    return patterns[pattern]
