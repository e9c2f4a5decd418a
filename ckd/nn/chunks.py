"""Rows of a large matrix in blocks that memory holds, and in chunks that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Elements of a block that is held at a time: 64 MiB in float32.
BLOCK_ELEMENTS = 1 << 24

#: How many times as large it is on a GPU, which needs more work at once than a processor to be busy: 512 MiB.
ON_GPU = 8

#: Elements of a chunk: 1 MiB in float32.
CHUNK_ELEMENTS = 1 << 18

#: Elements between the beginnings of two rows are a multiple of this where a product is written.
EVEN = 64


def block_rows(width: int, device: torch.device) -> int:
    """How many rows of `width` elements a block has, one at least."""
    elements = BLOCK_ELEMENTS if device.type == "cpu" else BLOCK_ELEMENTS * ON_GPU
    return max(1, elements // width)


def even_rows(rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """An empty (rows, width) matrix of the kind of `like`, for a product to be written to.

    Its rows begin at multiples of 64 elements. A float32 product whose rows do not, as catalogues have it, takes a
    quarter longer.
    """
    return like.new_empty(rows, -(-width // EVEN) * EVEN)[:, :width]


def products(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(r, N) dot products of (r, d) with (N, d), in `even_rows` and without gradient."""
    return torch.mm(rows, table.T, out=even_rows(len(rows), len(table), rows))


def row_chunks(matrix: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of (n, N), each of about `CHUNK_ELEMENTS`; on a GPU one of all rows."""
    n, width = matrix.shape
    step = max(1, CHUNK_ELEMENTS // width) if matrix.device.type == "cpu" else n
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
