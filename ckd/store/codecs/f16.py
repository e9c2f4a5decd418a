"""float16 log-scores, bit-exact, in three quarters of their size.

A float16 is a low byte of mantissa, which does not compress, and a high byte of sign, exponent and two bits of
mantissa. The sign of a log-score is always minus, and a batch's scores span few binades: four bits hold the high byte
of nearly all of them. They decode with a handful of vector operations, several times faster than any entropy coder
with about the same result.

Layout, little-endian, for n = rows * cols values in row-major order, each taken as 16 bits:

    byte 0        mode: 0 nibbles, 1 zstd
    byte 1        base, the high byte (without its sign bit) that code 0 stands for
    bytes 2..5    uint32, number of escapes e
    n bytes       low bytes
    mode 0:       ceil(n / 2) bytes of codes: the low nibble of byte k is the code of value k, the high nibble that of
                  value ceil(n / 2) + k (0 where there is none); code c < 15 is the high byte base + c, code 15 an
                  escape; then e bytes, the high bytes of the escapes in order
    mode 1:       a zstd frame of the n high bytes; base and e are 0

All high bytes here are without their sign bit, which is always set. Mode 1 takes over where escapes would cost more.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ckd.store.codecs.base import LOWEST, Float, check_log_scores

HEADER = struct.Struct("<BBI")
NIBBLES, ZSTD = 0, 1
ESCAPE = 15
SIGN = 0x80

#: The normal float16 nearest to zero from below.
NORMAL = np.float32(-(2.0**-14))


class F16:
    """float16 log-scores, the high bytes packed to four bits."""

    layout: Literal["payload"] = "payload"
    bound = "rounded to float16: within |s| / 2048 + 3e-8 of the exact log-score s; below -65504 stored as -65504"
    lossy = False

    def __init__(self) -> None:
        self._zstd = pa.Codec("zstd", 1)

    def encode(self, log_scores: npt.NDArray[np.float32]) -> bytes:
        """The bytes of a (rows, cols) matrix; see the module for the layout."""
        low, _ = check_log_scores(log_scores)
        clipped = log_scores if low >= LOWEST else np.maximum(log_scores, np.float32(LOWEST))
        bits = float16_bits(np.ascontiguousarray(clipped, dtype=np.float32).reshape(-1))
        lows = bits.astype(np.uint8)
        highs = (bits >> 8).astype(np.uint8)
        highs &= SIGN - 1
        base = max(int(highs.max()) - ESCAPE + 1, 0)
        # What lies below the base wraps around to a large number, and becomes an escape like every large number.
        codes = np.minimum(highs - np.uint8(base), ESCAPE).astype(np.uint8, copy=False)
        escapes = highs[codes == ESCAPE]
        # One escape costs a byte; up to here the nibbles stay below 0.77 of the float16's size.
        if escapes.size > max(bits.size // 32, 8):
            return b"".join([HEADER.pack(ZSTD, 0, 0), lows.data, self._zstd.compress(highs)])
        half = (bits.size + 1) // 2
        packed = codes[half:] << 4
        packed |= codes[: bits.size - half]
        tail = codes[bits.size - half : half].tobytes()
        return b"".join([HEADER.pack(NIBBLES, base, escapes.size), lows.data, packed.data, tail, escapes.data])

    def decode(self, buffer: Any, rows: int, cols: int) -> Float:
        """The (rows, cols) float16 matrix, bit for bit what was rounded."""
        size = rows * cols
        view = memoryview(buffer)
        if len(view) < HEADER.size + size:
            raise ValueError(f"{len(view)} bytes are too few for {rows} x {cols} scores")
        mode, base, escapes = HEADER.unpack_from(view)
        rest = np.frombuffer(view[HEADER.size :], np.uint8)
        lows, rest = rest[:size], rest[size:]
        if mode == NIBBLES:
            highs = _unpack(rest, size, base, escapes)
        elif mode == ZSTD and base == 0 and escapes == 0:
            highs = self._expand(rest, size)
        else:
            raise ValueError(f"mode {mode} with base {base} and {escapes} escapes is none that f16 writes")
        bits = np.multiply(highs, 256, dtype=np.uint16)
        bits |= lows
        # A view as "<f2" is the machine's own float16 wherever numpy's arithmetic is little-endian.
        return bits.view(np.float16).reshape(rows, cols)

    def tolerance(self, log_scores: npt.NDArray[np.float32]) -> Float:
        """Half a unit in the last place of float16."""
        inside = np.abs(log_scores.astype(np.float64)) * 2.0**-11 + 2.0**-25
        return np.maximum(inside, LOWEST - log_scores.astype(np.float64))

    def _expand(self, frame: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
        try:
            found = self._zstd.decompress(frame, size)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"the zstd frame does not hold {size} bytes: {error}") from None
        highs = np.frombuffer(found, np.uint8)
        return highs | np.uint8(SIGN)


def float16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """(n,) the bits of float16 without their sign, to nearest even, of (n,) values in -65504..0.

    Integer arithmetic in vector registers: numpy's own conversion takes four times as long, more than all else here.
    """
    bits = values.view(np.uint32)
    # Add half of the 13 bits that go, less one unless the last that stays is odd: ties go to even. Then the bias.
    rounded: npt.NDArray[np.uint32] = np.right_shift(bits, 13)
    rounded &= 1
    rounded += bits
    rounded += np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)
    rounded >>= 13
    rounded &= 0x7FFF
    # Subnormals of float16 and zeros follow another rule; log-scores of probabilities above 0.99994 are rare.
    small = np.flatnonzero(values > NORMAL)
    if small.size:
        rounded[small] = np.minimum(values[small], 0).astype(np.float16).view(np.uint16) & 0x7FFF
    return rounded


def _unpack(rest: npt.NDArray[np.uint8], size: int, base: int, escapes: int) -> npt.NDArray[np.uint8]:
    half = (size + 1) // 2
    if rest.size != half + escapes or base > SIGN - ESCAPE:
        raise ValueError(f"{rest.size} bytes of codes and escapes, expected {half + escapes}, base {base}")
    codes = np.empty(size, np.uint8)
    np.bitwise_and(rest[:half], ESCAPE, out=codes[:half])
    np.right_shift(rest[: size - half], 4, out=codes[half:])
    if escapes:
        places = np.flatnonzero(codes == ESCAPE)
        if places.size != escapes:
            raise ValueError(f"{places.size} escape codes for {escapes} escapes")
        codes += np.uint8(base + SIGN)
        codes[places] = rest[half:] | np.uint8(SIGN)
    else:
        codes += np.uint8(base + SIGN)
    return codes


CODEC = F16()
