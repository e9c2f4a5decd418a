"""Writing matrices of log-scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ckd.errors import StoreError
from ckd.store.binding import BatchIndex, Binding
from ckd.store.codecs import CODECS
from ckd.store.codecs.base import LOWEST, check_log_scores, divergence
from ckd.store.layout import Shard, binary, columns, cut, lists, payload_schema, tensor_schema
from ckd.store.location import Location
from ckd.store.manifest import Header, Manifest
from ckd.store.shards import Report, Task, silent, write_shards

#: The log-scores of a range of batches, each a (rows, cols) float32 matrix with its batch id, in order.
Score = Callable[[range], Iterator[tuple[int, npt.NDArray[np.float32]]]]


def write_store(
    location: str | Path,
    binding: Binding,
    index: BatchIndex,
    codec: str,
    score: Score,
    *,
    shard_batches: int = 64,
    report: Report = silent,
) -> Manifest:
    """Score every batch of a plan into a store, resuming what was begun and sharing the work with other processes.

    Args:
        location: the store's folder, a path or a URI.
        binding: what the scores depend on; its codec is set to `codec`.
        index: what the plan says of its batches.
        codec: name of a codec that stores matrices.
        score: gives the log-scores of a range of batches. It is called once for every shard that this process writes.
        shard_batches: batches in a shard.
        report: called with (batches done, batches in all, "batches").

    Returns:
        The manifest of the finished store, equal for every process that took part.

    Raises:
        StoreError: the folder holds scores of something else or cannot be written, or the scores are not finite.
    """
    task = matrix_task(binding, index, codec, score, shard_batches=shard_batches)
    return write_shards(Location(location), task, report)


def matrix_task(binding: Binding, index: BatchIndex, codec: str, score: Score, *, shard_batches: int = 64) -> Task:
    """The work of `write_store`, not begun."""
    chosen = CODECS.get(codec)
    if chosen.layout == "vectors":
        raise StoreError(f"codec {codec!r} stores vectors, not matrices. Use write_vector_store, or another codec.")
    if not len(index):
        raise StoreError("the plan has no batches. Plan again with more instances.")
    header = Header(replace(binding, codec=codec), "matrices", index.fingerprint, len(index), shard_batches)
    tensor = chosen.layout == "tensor"
    width = int(index.cols.max())
    schema = tensor_schema(width) if tensor else payload_schema(chosen.lossy)

    def compute(shard: Shard) -> Iterator[pa.Table]:
        expected = iter(shard.ids)
        for batch_id, log_scores in score(shard.ids):
            if batch_id != next(expected, None):
                raise ValueError(f"batch {batch_id} out of order in {shard.ids}")
            _check(index, batch_id, log_scores)
            try:
                if tensor:
                    group = tensor_group(schema, index, batch_id, log_scores, width)
                else:
                    group = payload_group(schema, index, batch_id, log_scores, chosen)
            except ValueError as error:
                raise StoreError(f"batch {batch_id}: {error}. The teacher is broken: fine-tune it again.") from None
            yield group
        if (left := next(expected, None)) is not None:
            raise ValueError(f"no scores for batch {left}")

    return Task(
        header=header,
        shards=cut("batches", len(index), shard_batches),
        schema=schema,
        compute=compute,
        matches=lambda shard, number, table: group_matches(index, shard.first + number, table),
        rows=lambda shard: int(index.rows[shard.first : shard.first + shard.count].sum()),
        bound=chosen.bound,
    )


def _check(index: BatchIndex, batch_id: int, log_scores: npt.NDArray[np.float32]) -> None:
    shape = (int(index.rows[batch_id]), int(index.cols[batch_id]))
    if log_scores.shape != shape or log_scores.dtype != np.float32:
        raise ValueError(f"batch {batch_id}: {log_scores.dtype} {log_scores.shape}, expected float32 {shape}")


def payload_group(
    schema: pa.Schema, index: BatchIndex, batch_id: int, log_scores: npt.NDArray[np.float32], codec: Any
) -> pa.Table:
    """The row group of one batch, its matrix as one binary value."""
    payload = codec.encode(log_scores)
    quality: list[pa.Array] = []
    if codec.lossy:
        measured = divergence(log_scores, codec.decode(payload, *log_scores.shape))
        quality = [pa.array([measured.mean()]), pa.array([measured.max()])]
    own = [
        pa.array([batch_id], pa.int64()),
        pa.array([int(index.rows[batch_id])], pa.int32()),
        pa.array([int(index.cols[batch_id])], pa.int32()),
        *quality,
        pa.array([int(index.hashes[batch_id])], pa.uint64()),
        binary(payload),
    ]
    return pa.Table.from_arrays(own, schema=schema)


def tensor_group(
    schema: pa.Schema, index: BatchIndex, batch_id: int, log_scores: npt.NDArray[np.float32], width: int
) -> pa.Table:
    """The row group of one batch, a table row for each row of its matrix; minus infinity, probability 0, pads it."""
    check_log_scores(log_scores)
    rows, cols = log_scores.shape
    padded = np.full((rows, width), -np.inf, dtype=np.float16)
    padded[:, :cols] = np.clip(log_scores, LOWEST, 0)
    own = [
        pa.array(np.full(rows, batch_id, dtype=np.int64)),
        pa.array(np.full(rows, index.hashes[batch_id], dtype=np.uint64)),
        pa.array(np.arange(rows, dtype=np.int32)),
        pa.array(np.full(rows, cols, dtype=np.int32)),
        lists(padded),
    ]
    return pa.Table.from_arrays(own, schema=schema)


def group_matches(index: BatchIndex, batch_id: int, table: pa.Table) -> bool:
    """Whether a row group, read without its scores, is the plan's batch."""
    rows, cols, content = (int(values[batch_id]) for values in (index.rows, index.cols, index.hashes))
    found = {name: table[name].to_numpy() for name in table.schema.names}
    same = (found[columns.BATCH] == batch_id).all() and (found[columns.HASH] == np.uint64(content)).all()
    same = same and (found[columns.COLUMNS] == cols).all()
    if columns.ROW in found:
        return bool(same and np.array_equal(found[columns.ROW], np.arange(rows)))
    return bool(same and table.num_rows == 1 and found[columns.ROWS][0] == rows)
