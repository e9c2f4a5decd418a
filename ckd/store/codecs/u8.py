"""Eight bits per log-score, on a scale of its own for each row.

Levels lie densest at a row's highest scores, where its probability is: code c is the log-score highest - c * c * step.
At equal size this halves the divergence that evenly spaced levels cause in rows of a wide range, and keeps the worst
row's below 1e-4 nats where theirs is not.

Layout, little-endian: rows float32 of the rows' highest log-score, rows float32 of their steps, then rows * cols bytes
of codes in row-major order. A row is normalised after decoding.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ckd.store.codecs.base import LOWEST, Float, check_log_scores

LEVELS = 255

#: Bytes of a row beside its codes.
SCALE = 8


class U8:
    """8-bit log-scores on a square-law scale per row."""

    layout: Literal["payload"] = "payload"
    bound = (
        "within sqrt(D d) / 255 + D / 260000 of the exact log-score, d its depth below its row's best, D the deepest"
    )
    lossy = True

    def encode(self, log_scores: npt.NDArray[np.float32]) -> bytes:
        """The bytes of a (rows, cols) matrix."""
        low, _ = check_log_scores(log_scores)
        scores = log_scores if low >= LOWEST else np.maximum(log_scores, np.float32(LOWEST))
        highest = scores.max(axis=1, keepdims=True)
        depths = highest - scores
        steps = depths.max(axis=1, keepdims=True) / np.float32(LEVELS * LEVELS)
        # Rows of equal scores have no step: every code is 0.
        inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps > np.finfo(np.float32).tiny)
        depths *= inverse
        np.sqrt(depths, out=depths)
        np.rint(depths, out=depths)
        codes = np.minimum(depths, LEVELS).astype(np.uint8)
        return b"".join([highest.astype("<f4").tobytes(), steps.astype("<f4").tobytes(), codes.tobytes()])

    def decode(self, buffer: Any, rows: int, cols: int) -> Float:
        """The (rows, cols) float32 matrix."""
        view = memoryview(buffer)
        if len(view) != rows * (cols + SCALE):
            raise ValueError(f"{len(view)} bytes, expected {rows * (cols + SCALE)} for {rows} x {cols} scores")
        highest, steps = np.frombuffer(view[: rows * SCALE], "<f4").reshape(2, rows, 1)
        scores = np.frombuffer(view[rows * SCALE :], np.uint8).reshape(rows, cols).astype(np.float32)
        scores *= scores
        scores *= -steps
        scores += highest
        return scores

    def tolerance(self, log_scores: npt.NDArray[np.float32]) -> Float:
        """Half the way between two levels, which grows with depth, and the rounding of float32."""
        exact = log_scores.astype(np.float64)
        inside = np.maximum(exact, LOWEST)
        depths = inside.max(axis=1, keepdims=True) - inside
        steps = depths.max(axis=1, keepdims=True) / LEVELS**2
        rounding = 8 * np.finfo(np.float32).eps * np.abs(inside).max(axis=1, keepdims=True)
        return np.sqrt(depths * steps) + steps / 4 + rounding + np.finfo(np.float32).tiny * LEVELS**2 + inside - exact


CODEC = U8()
