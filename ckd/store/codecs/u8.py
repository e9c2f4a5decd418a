"""Eight bits per log-score, on a scale of its own for each row.

Code c is the log-score highest - c * (u + c * v): levels lie evenly for v = 0 and densest at the row's highest scores,
where its probability is, for u = 0. With D the depth of the row's lowest score below its highest, every mix m gives
such a scale that ends at D: u = (1 - m) * D / 255, v = m * D / 255**2. Rounding to it costs the row

    KL = D**2 / (24 * 255**2) * ((1 - m)**2 + 4 * m * r)  nats,  r = E_p[depth] / D

to first order, which is least at m = 1 - 2 r, or 0 where that is negative. At equal size this keeps the worst rows of
real scores below 1e-4 nats, where even spacing and the square law alone do not.

Layout, little-endian: rows float32 of D / 255**2, rows float16 of the highest log-score, rows uint16 of m * 65535, then
rows * cols bytes of codes in row-major order. A row is normalised after decoding.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ckd.store.codecs.base import LOWEST, Float, check_log_scores

LEVELS = 255

#: The mix is stored as a fraction of this.
MIXES = 65535

#: Bytes of a row beside its codes: float32, float16, uint16.
SCALE = 8

Rows = npt.NDArray[np.float32]


class U8:
    """8-bit log-scores on a scale per row that is as even as its probability is spread."""

    layout: Literal["payload"] = "payload"
    bound = (
        "within max(D / 510, sqrt(D d) / 255) + D / 260000 + |h| / 2048 of the exact log-score, h its row's best, d "
        "its depth below that, D the deepest"
    )
    lossy = True

    def encode(self, log_scores: npt.NDArray[np.float32]) -> bytes:
        """The bytes of a (rows, cols) matrix."""
        low, _ = check_log_scores(log_scores)
        scores = log_scores if low >= LOWEST else np.maximum(log_scores, np.float32(LOWEST))
        highest = scores.max(axis=1, keepdims=True)
        depths = highest - scores
        steps = depths.max(axis=1, keepdims=True) / np.float32(LEVELS * LEVELS)
        mixes = best_mixes(depths)
        linear, square = _coefficients(steps, mixes)
        # The positive root of square * c**2 + linear * c = depth, in the form that loses no digits.
        root = np.sqrt(linear * linear + 4 * square * depths)
        root += linear
        codes = np.divide(2 * depths, root, out=np.zeros_like(depths), where=root > np.finfo(np.float32).tiny)
        np.rint(codes, out=codes)
        parts = (steps.astype("<f4"), highest.astype("<f2"), mixes.astype("<u2"), np.minimum(codes, LEVELS))
        return b"".join([*(part.tobytes() for part in parts[:3]), parts[3].astype(np.uint8).tobytes()])

    def decode(self, buffer: Any, rows: int, cols: int) -> Float:
        """The (rows, cols) float32 matrix."""
        view = memoryview(buffer)
        if len(view) != rows * (cols + SCALE):
            raise ValueError(f"{len(view)} bytes, expected {rows * (cols + SCALE)} for {rows} x {cols} scores")
        steps, highest, mixes = (
            np.frombuffer(view[start * rows : stop * rows], kind).reshape(rows, 1)
            for start, stop, kind in ((0, 4, "<f4"), (4, 6, "<f2"), (6, 8, "<u2"))
        )
        linear, square = _coefficients(steps, mixes)
        codes = np.frombuffer(view[rows * SCALE :], np.uint8).reshape(rows, cols).astype(np.float32)
        scores = codes * -square
        scores -= linear
        scores *= codes
        scores += highest
        return scores

    def tolerance(self, log_scores: npt.NDArray[np.float32]) -> Float:
        """Half the way between two levels of the coarser of both scales, and the rounding of what a row stores."""
        exact = log_scores.astype(np.float64)
        inside = np.maximum(exact, LOWEST)
        highest = inside.max(axis=1, keepdims=True)
        depths = highest - inside
        deepest = depths.max(axis=1, keepdims=True)
        between = np.maximum(deepest / (2 * LEVELS), np.sqrt(deepest * depths) / LEVELS) + deepest / (4 * LEVELS**2)
        rounding = 16 * np.finfo(np.float32).eps * np.abs(inside).max(axis=1, keepdims=True)
        best = np.abs(highest) * 2.0**-11 + 2.0**-25
        return between + rounding + best + np.finfo(np.float32).tiny * LEVELS**2 + inside - exact


def best_mixes(depths: Rows) -> npt.NDArray[np.float64]:
    """(rows, 1) whole numbers up to `MIXES`: for each row of (rows, cols) depths, the mix of least divergence."""
    p = np.exp(-depths)
    mean = (p * depths).sum(axis=1, keepdims=True) / p.sum(axis=1, keepdims=True)
    deepest = depths.max(axis=1, keepdims=True)
    share = np.divide(mean, deepest, out=np.zeros_like(mean), where=deepest > 0)
    return np.rint(np.clip(1 - 2 * share.astype(np.float64), 0, 1) * MIXES)


def _coefficients(steps: Rows, mixes: npt.NDArray[Any]) -> tuple[Rows, Rows]:
    """(rows, 1) u and v of the scale, in float32 from what is stored, so that both directions have the same."""
    mix = mixes.astype(np.float32) / np.float32(MIXES)
    return (1 - mix) * (steps * np.float32(LEVELS)), mix * steps


CODEC = U8()
