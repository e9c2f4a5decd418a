"""Rows of different lengths in batches that pad little."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def by_length(lengths: npt.ArrayLike, budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows in groups of similar length, longest first, each of at most `budget` padded tokens or a single row."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count
