"""float16 log-scores as Parquet lists of one size, for reading with polars, DuckDB or Arrow and nothing else.

A table row is a row of a matrix: batch, hash, row, columns, scores. Rows of narrower batches end in minus infinity.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ckd.store.codecs.base import LOWEST, Float


class Tensor:
    """One FixedSizeList<float16> per row of a matrix."""

    layout: Literal["tensor"] = "tensor"
    bound = "rounded to float16: within |s| / 2048 + 3e-8 of the exact log-score s; below -65504 stored as -65504"
    lossy = False

    def tolerance(self, log_scores: npt.NDArray[np.float32]) -> Float:
        """Half a unit in the last place of float16."""
        exact = log_scores.astype(np.float64)
        return np.maximum(np.abs(exact) * 2.0**-11 + 2.0**-25, np.maximum(LOWEST - exact, exact))


CODEC = Tensor()
