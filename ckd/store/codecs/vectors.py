"""float16 vectors of instances and items in place of matrices, which are rebuilt when read.

A vector is stored as its values over a power of two near its largest one, so that float16 neither overflows nor loses
small vectors to its subnormals.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

#: Half a unit in the last place of float16, relative.
EPS = 2.0**-11


#: The largest float16 below 2.
BELOW_TWO = np.float32(2 - 2.0**-10)


class Vectors:
    """One float16 vector per instance and per item, once for all batches."""

    layout: Literal["vectors"] = "vectors"
    bound = "within 2 d (|u| |v| / 1000 / tau) of the exact log-score, u and v the largest values of its vectors"
    lossy = True

    def quantise(self, vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
        """(n, d) float16 values and (n,) float32 scales, powers of two, of (n, d) float32 vectors.

        Raises:
            ValueError: a value is not finite.
        """
        if not np.isfinite(vectors).all():
            raise ValueError("vectors with values that are not finite")
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        # Largest values end up in [0.5, 1); float32's smallest normal keeps the scale from underflow.
        exponent = np.clip(np.frexp(largest)[1], -126, 127)
        scales = np.ldexp(np.float32(1), exponent).astype(np.float32)
        # Past 2**127 values reach 2, which is beyond float32 once it is scaled back.
        return np.clip(vectors / scales[:, None], -BELOW_TWO, BELOW_TWO).astype(np.float16), scales

    def restore(self, values: npt.NDArray[np.float16], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The (n, d) float32 vectors that `quantise` stored."""
        restored: npt.NDArray[np.float32] = values.astype(np.float32)
        restored *= scales[:, None]
        return restored

    def tolerance(
        self, users: npt.NDArray[np.float32], items: npt.NDArray[np.float32], temperature: float
    ) -> npt.NDArray[np.float64]:
        """(rows, 1) largest difference between stored and exact log-scores of (rows, d) users and (cols, d) items.

        A rounded product differs by at most 2 eps |u| |v| in each of d terms, twice that after the softmax; what
        float16's subnormals and float32's sums add is covered by a little more.
        """
        largest = np.abs(users.astype(np.float64)).max(axis=1, keepdims=True) * np.abs(items.astype(np.float64)).max()
        return 2 * users.shape[1] * (2.05 * EPS * largest) / temperature + 1e-5


CODEC = Vectors()
