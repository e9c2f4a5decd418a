"""What the store asks of a codec, and how matrices of log-scores are compared."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]

#: The lowest finite float16: log-scores below it are stored as it, which is probability 0 at any temperature.
LOWEST = -65504.0

#: Log-scores exceed 0 only by the rounding of whoever computed them.
SLACK = 1e-3


class Codec(Protocol):
    """One way to store a batch's (rows, cols) matrix of log-scores, the log of Eq. (2).

    Attributes:
        layout: `payload` stores one binary value per batch, `tensor` one list per row of the matrix, `vectors` one
            vector per instance and per item instead of any matrix.
        bound: one sentence on how far stored log-scores may lie from exact ones.
        lossy: whether the divergence from exact scores is measured while writing and recorded.
    """

    layout: Literal["payload", "tensor", "vectors"]
    bound: str
    lossy: bool


class MatrixCodec(Codec, Protocol):
    """A codec that stores a matrix as one binary value."""

    def encode(self, log_scores: npt.NDArray[np.float32]) -> bytes:
        """The bytes of a (rows, cols) float32 matrix.

        Raises:
            ValueError: a value is not finite or exceeds 0.
        """
        ...

    def decode(self, buffer: Any, rows: int, cols: int) -> Float:
        """The (rows, cols) matrix, float16 or float32, from the bytes of `encode`.

        Raises:
            ValueError: the buffer is not what `encode` writes for this shape.
        """
        ...

    def tolerance(self, log_scores: npt.NDArray[np.float32]) -> Float:
        """The largest difference between stored and exact log-scores, broadcastable to (rows, cols)."""
        ...


def check_log_scores(log_scores: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Lowest and highest value of a matrix of log-scores.

    Raises:
        ValueError: no (rows, cols) matrix of at least one value, or a value is not finite or exceeds 0.
    """
    if log_scores.ndim != 2 or log_scores.size == 0:
        raise ValueError(f"log-scores are a (rows, cols) matrix, found shape {log_scores.shape}")
    # NaN passes through min and max, so two reductions see every bad value.
    low, high = float(log_scores.min()), float(log_scores.max())
    if not (np.isfinite(low) and high <= SLACK):
        raise ValueError(f"log-scores are finite and at most 0, found values from {low} to {high}")
    return low, high


def log_softmax(logits: Float) -> npt.NDArray[np.float64]:
    """(rows, cols) float64 log-softmax over the columns, Eq. (2) in log space."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(exact: Float, stored: Float) -> npt.NDArray[np.float64]:
    """(rows,) KL(exact || stored) in nats, both given as log-scores and normalised first."""
    p, q = log_softmax(exact), log_softmax(stored)
    return np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
