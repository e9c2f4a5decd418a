"""Rows of a large matrix in chunks that stay in the processor's cache, for work element by element."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Elements of a chunk: 1 MiB in float32.
CHUNK_ELEMENTS = 1 << 18


def row_chunks(matrix: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of (n, N), each of about `CHUNK_ELEMENTS`; on a GPU one of all rows."""
    n, width = matrix.shape
    step = max(1, CHUNK_ELEMENTS // width) if matrix.device.type == "cpu" else n
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
