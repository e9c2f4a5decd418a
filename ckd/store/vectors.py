"""Stores of vectors: written once per instance and item, whatever the number of batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ckd.errors import StoreError
from ckd.store.binding import BatchIndex, Binding, Members
from ckd.store.codecs import CODECS
from ckd.store.codecs.base import divergence
from ckd.store.layout import Shard, check_footer, columns, cut, lists, matrix_of, vector_schema
from ckd.store.location import Location
from ckd.store.manifest import Header, Manifest, ShardRecord, damaged
from ckd.store.shards import Report, Task, silent, write_shards

Vectors = npt.NDArray[np.float32]

#: Vectors in a row group.
GROUP = 8192

#: Items against which the divergence of every instance is measured, spread evenly over the catalogue.
MEASURED_ITEMS = 512


def write_vector_store(
    location: str | Path,
    binding: Binding,
    index: BatchIndex,
    encode: Callable[[range], Vectors],
    targets: npt.NDArray[np.integer],
    items: Vectors,
    *,
    shard_instances: int = 65_536,
    report: Report = silent,
) -> Manifest:
    """Write a teacher's vectors, resuming what was begun and sharing the work with other processes.

    Args:
        location: the store's folder, a path or a URI.
        binding: what the vectors depend on; temperature and similarity are needed to rebuild scores.
        index: what the plan says of its batches.
        encode: (n, d) float32 vectors of a range of instance ids. Cosine teachers' vectors may have any length.
        targets: (n_instances,) target item of each instance.
        items: (n_items + 1, d) float32 vectors of the items, row 0 the padding item.
        shard_instances: instances in a shard.
        report: called with (instances done, instances in all, "instances").

    Returns:
        The manifest of the finished store.

    Raises:
        StoreError: the folder holds scores of something else or cannot be written, or a vector is not finite.
    """
    task = vector_task(binding, index, encode, targets, items, shard_instances=shard_instances)
    return write_shards(Location(location), task, report)


def vector_task(
    binding: Binding,
    index: BatchIndex,
    encode: Callable[[range], Vectors],
    targets: npt.NDArray[np.integer],
    items: Vectors,
    *,
    shard_instances: int = 65_536,
) -> Task:
    """The work of `write_vector_store`, not begun."""
    if binding.similarity not in ("dot", "cosine") or not binding.temperature:
        raise StoreError(f"similarity {binding.similarity}, expected dot or cosine and a temperature to store vectors.")
    cosine, temperature = binding.similarity == "cosine", binding.temperature
    header = Header(replace(binding, codec="vectors"), "vectors", index.fingerprint, len(index), shard_instances)
    schema = vector_schema(items.shape[1])
    table = _prepared(items, cosine)
    sample = table[np.unique(np.linspace(1, len(items) - 1, min(MEASURED_ITEMS, len(items) - 1)).astype(np.int64))]

    def expected(shard: Shard, number: int) -> tuple[range, npt.NDArray[np.int64]]:
        ids = shard.ids[number * GROUP : (number + 1) * GROUP]
        wanted = targets[ids.start : ids.stop] if shard.group == "instances" else np.zeros(len(ids))
        return ids, np.asarray(wanted, dtype=np.int64)

    def compute(shard: Shard) -> Iterator[pa.Table]:
        for number in range(-(-shard.count // GROUP)):
            ids, wanted = expected(shard, number)
            if shard.group == "items":
                yield _group(schema, ids, wanted, table[ids.start : ids.stop], None, temperature)
            else:
                vectors = _prepared(encode(ids), cosine)
                if vectors.shape != (len(ids), items.shape[1]):
                    raise ValueError(f"vectors of shape {vectors.shape}, expected {(len(ids), items.shape[1])}")
                yield _group(schema, ids, wanted, vectors, sample, temperature)

    def matches(shard: Shard, number: int, found: pa.Table) -> bool:
        ids, wanted = expected(shard, number)
        same = np.array_equal(found[columns.ID].to_numpy(), np.arange(ids.start, ids.stop))
        return bool(same and np.array_equal(found[columns.TARGET].to_numpy(), wanted))

    return Task(
        header=header,
        shards=[*cut("instances", len(targets), shard_instances), *cut("items", len(items), shard_instances)],
        schema=schema,
        compute=compute,
        matches=matches,
        rows=lambda shard: shard.count,
        bound=CODECS.get("vectors").bound,
    )


def _prepared(vectors: Vectors, cosine: bool) -> Vectors:
    vectors = np.asarray(vectors, dtype=np.float32)
    if not cosine:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return np.divide(vectors, lengths, dtype=np.float32)


def _group(
    schema: pa.Schema,
    ids: range,
    targets: npt.NDArray[np.int64],
    vectors: Vectors,
    sample: Vectors | None,
    temperature: float,
) -> pa.Table:
    codec = CODECS.get("vectors")
    try:
        values, scales = codec.quantise(vectors)
    except ValueError as error:
        raise StoreError(
            f"vectors {ids.start}..{ids.stop - 1}: {error}. The teacher is broken: fine-tune it again."
        ) from None
    kl = np.zeros(len(ids))
    if sample is not None:
        stored_sample = codec.restore(*codec.quantise(sample))
        stored = codec.restore(values, scales)
        for at in range(0, len(ids), MEASURED_ITEMS):
            part = slice(at, at + MEASURED_ITEMS)
            exact = vectors[part] @ sample.T / temperature
            kl[part] = divergence(exact, stored[part] @ stored_sample.T / temperature)
    own = [np.arange(ids.start, ids.stop, dtype=np.int64), targets, scales, kl]
    return pa.Table.from_arrays([*map(pa.array, own), lists(values)], schema=schema)


class VectorSource:
    """Rebuilds matrices from vectors, all of which are read and verified at opening.

    They are kept in an unnamed temporary file mapped into memory: 2 d bytes for each instance that the system may drop
    and load again, whatever the number of batches.
    """

    def __init__(self, location: Location, manifest: Manifest, index: BatchIndex, members: Members) -> None:
        binding = manifest.header.binding
        assert binding.temperature is not None
        self.temperature = binding.temperature
        self.index = index
        self.members = members
        self.path = location.text
        self._codec = CODECS.get("vectors")
        split = [record for record in manifest.shards if record.file.startswith("part")]
        self._values, self._scales, self._targets = _load(location, manifest, split)
        values, scales, _ = _load(location, manifest, [r for r in manifest.shards if r not in split])
        self.items: Vectors = self._codec.restore(values, scales)

    def read(self, batch_id: int) -> Vectors:
        """(rows, cols) float32 log-scores of a batch.

        Raises:
            StoreError: the stored targets of the batch's instances are not the plan's.
        """
        instances, targets = self._members(batch_id)
        return self._log_scores(self.users(instances), self.items[targets])

    def catalogue(self, batch_id: int) -> Vectors:
        """(rows, n_items) float32 log-scores of a batch's instances over all items 1..n_items.

        Raises:
            StoreError: as in `read`.
        """
        instances, _ = self._members(batch_id)
        return self._log_scores(self.users(instances), self.items[1:])

    def batch_users(self, batch_id: int) -> Vectors:
        """(rows, d) float32 vectors of a batch's instances.

        Raises:
            StoreError: as in `read`.
        """
        return self.users(self._members(batch_id)[0])

    def users(self, instances: npt.NDArray[np.integer]) -> Vectors:
        """(n, d) float32 vectors of instances."""
        restored: Vectors = self._codec.restore(self._values[instances], self._scales[instances])
        return restored

    def _members(self, batch_id: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        instances, targets = self.members(batch_id)
        shape = (int(self.index.rows[batch_id]), int(self.index.cols[batch_id]))
        if (len(instances), len(targets)) != shape:
            raise StoreError(f"{self.path}: batch {batch_id} has {len(instances)} x {len(targets)}, expected {shape}.")
        if int(instances.max()) >= len(self._targets):
            raise StoreError(
                f"{self.path}: no instance {int(instances.max())}, holds {len(self._targets)}. Score again."
            )
        # The columns of a batch are its instances' own targets, so that a renumbered catalogue shows here.
        wrong = np.flatnonzero(self._targets[instances] != targets)
        if wrong.size:
            at = int(wrong[0])
            raise StoreError(
                f"{self.path}: instance {int(instances[at])} of batch {batch_id} was stored with item "
                f"{int(self._targets[instances[at]])}, the plan says {int(targets[at])}. Score again."
            )
        return instances, targets

    def _log_scores(self, users: Vectors, items: Vectors) -> Vectors:
        logits = users @ items.T
        logits *= np.float32(1 / self.temperature)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits


def _load(
    location: Location, manifest: Manifest, records: list[ShardRecord]
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Values, scales and targets of shards, every CRC verified."""
    total, done = sum(record.count for record in records), 0
    scales, targets = np.empty(total, np.float32), np.empty(total, np.int64)
    values: npt.NDArray[np.float16] | None = None
    for record in records:
        try:
            for group in _groups(location, manifest, record):
                part = matrix_of(group[columns.VECTOR])
                if values is None:
                    with tempfile.TemporaryFile() as file:
                        values = np.memmap(file, np.float16, "w+", shape=(total, part.shape[1]))
                here = slice(done, done + len(part))
                if not np.array_equal(group[columns.ID].to_numpy(), np.arange(total)[here]):
                    raise ValueError(f"ids differ from {here.start}..{here.stop - 1}")
                values[here] = part
                scales[here], targets[here] = group[columns.SCALE].to_numpy(), group[columns.TARGET].to_numpy()
                done += len(part)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise damaged(location.path(record.file), " ".join(str(error).split())) from None
    assert values is not None
    assert done == total
    return values, scales, targets


def _groups(location: Location, manifest: Manifest, record: ShardRecord) -> Iterator[pa.Table]:
    check_footer(location, record, manifest)
    with location.open(record.file) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for number in range(parquet.num_row_groups):
            yield parquet.read_row_group(number, use_threads=False)
