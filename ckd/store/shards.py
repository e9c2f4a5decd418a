"""Writing the shards of a store: shared among workers, resumed after a kill, finished by the manifest."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ckd.errors import StoreError
from ckd.store.claims import CLAIM, Claims
from ckd.store.layout import Shard, columns, identify, record_of, shard_metadata, write_table_stream
from ckd.store.location import PARTIAL, Location
from ckd.store.manifest import MANIFEST, Header, Manifest, Quality, ShardRecord

#: Called with (done, total, unit) after every piece of work.
Report = Callable[[int, int | None, str], None]

#: How Arrow signs its Parquet files.
ARROW = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+")

#: Seconds between two looks at what other workers do.
POLL = 0.1


@dataclass(frozen=True)
class Task:
    """All of a store: what its files agree on, its shards, and how one is computed and recognised.

    Attributes:
        header: what every file states.
        shards: every shard, in order.
        schema: columns of a group's tables.
        compute: the row groups of a shard.
        matches: whether row group `n` of a shard, without its payload, is what the plan calls for.
        rows: how many rows of matrices a shard holds.
        bound: the codec's statement, for the manifest.
    """

    header: Header
    shards: list[Shard]
    schema: pa.Schema
    compute: Callable[[Shard], Iterator[pa.Table]]
    matches: Callable[[Shard, int, pa.Table], bool]
    rows: Callable[[Shard], int]
    bound: str


def silent(done: int, total: int | None, unit: str) -> None:
    """Reports nothing."""


def write_shards(location: Location, task: Task, report: Report = silent) -> Manifest:
    """Write every shard that is missing or damaged, then the manifest; any number of processes may do so at once.

    Raises:
        StoreError: the store was made for something else, or cannot be written.
    """
    location.make()
    known = _trusted(location, task)
    done: dict[str, ShardRecord] = {}
    total = sum(shard.count for shard in task.shards)
    unit = task.shards[0].group
    with Claims(location) as claims:
        while True:
            files = location.sizes()
            missing = [shard for shard in task.shards if shard.file not in files]
            report(total - sum(shard.count for shard in missing), total, unit)
            mine = next((shard for shard in missing if claims.take(shard.file, files)), None)
            if mine is not None:
                # Between the listing and the claim its owner may have finished it.
                if mine.file not in location.sizes():
                    done[mine.file] = _write(location, task, mine)
                claims.release(mine.file)
            elif not missing and not known and (finished := _finished(location, task, files)):
                return finished
            elif missing or not claims.take(MANIFEST, files):
                time.sleep(POLL)
            else:
                manifest = _finish(location, task, known, done)
                claims.release(MANIFEST)
                if manifest is not None:
                    report(total, total, unit)
                    return manifest


def _trusted(location: Location, task: Task) -> dict[str, ShardRecord]:
    """The records of an undamaged manifest; refuses a store that was made for something else."""
    try:
        manifest = Manifest.load(location)
    except StoreError:
        manifest = None
    if manifest is not None:
        manifest.header.require(task.header, location.path(MANIFEST))
        return {record.file: record for record in manifest.shards}
    files = location.sizes()
    for shard in task.shards:
        if shard.file in files:
            identify(location, shard, task.header)
    _refuse_surplus(location, task, files)
    return {}


def _refuse_surplus(location: Location, task: Task, files: Iterable[str]) -> None:
    ours = {shard.file for shard in task.shards}
    for name in sorted(files):
        if name.endswith(".parquet") and not name.startswith(".") and name not in ours:
            raise StoreError(
                f"{location.path(name)}: belongs to no shard of this store, which has {len(ours)}. "
                "Score into another folder, or remove this one to score it again."
            )


def _write(location: Location, task: Task, shard: Shard) -> ShardRecord:
    with location.create(shard.file) as file:
        metadata = shard_metadata(task.header, shard)
        sink = write_table_stream(file.write, task.schema, metadata, task.compute(shard))
    return record_of(shard, task.rows(shard), sink)


def _finish(
    location: Location, task: Task, known: dict[str, ShardRecord], done: dict[str, ShardRecord]
) -> Manifest | None:
    """Check every shard that this process did not write, then write the manifest; None after removing damaged ones."""
    sizes = location.sizes()
    whole = True
    for shard in task.shards:
        if shard.file in done and sizes.get(shard.file) == done[shard.file].bytes:
            continue
        record = _recheck(location, task, shard, known.get(shard.file))
        if record is None:
            location.delete(shard.file)
            known.pop(shard.file, None)
            whole = False
        else:
            done[shard.file] = record
    if not whole:
        return None
    records = tuple(done[shard.file] for shard in task.shards)
    manifest = Manifest(task.header, records, task.bound, _quality(location, task))
    if not _is_current(location, manifest):
        manifest.save(location)
    for name in location.sizes():
        if name.startswith(".") and (name.endswith(PARTIAL) or (CLAIM in name and MANIFEST not in name)):
            location.delete(name)
    return manifest


def _finished(location: Location, task: Task, files: dict[str, int]) -> Manifest | None:
    """The manifest that another worker has written meanwhile."""
    if MANIFEST in files:
        with suppress(StoreError):
            manifest = Manifest.load(location)
            if manifest.header == task.header and all(files[r.file] == r.bytes for r in manifest.shards):
                return manifest
    return None


def _is_current(location: Location, manifest: Manifest) -> bool:
    with suppress(StoreError):
        return Manifest.load(location) == manifest
    return False


def _recheck(location: Location, task: Task, shard: Shard, record: ShardRecord | None) -> ShardRecord | None:
    """The record of a finished shard, None where it is damaged."""
    if record is not None and sha256(location, shard.file) == record.sha256:
        return record
    if not identify(location, shard, task.header):
        return None
    return _rewrite(location, task, shard, recorded=record is not None)


def _rewrite(location: Location, task: Task, shard: Shard, recorded: bool) -> ShardRecord | None:
    """Prove a shard of which there is no checksum, by reading it with every CRC and writing it again to nowhere.

    What is written depends on the content alone, so that every bit of the file is compared. A shard by another version
    of Arrow may differ in form; of it only CRCs and content are proven, unless a checksum was recorded that it fails.
    """
    unread = [name for name in (columns.PAYLOAD, columns.SCORES, columns.VECTOR) if name in task.schema.names]
    with location.open(shard.file) as file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)

            def groups() -> Iterator[pa.Table]:
                for number in range(parquet.num_row_groups):
                    table = parquet.read_row_group(number, use_threads=False).cast(task.schema)
                    if not task.matches(shard, number, table.drop_columns(unread)):
                        raise ValueError("not what the plan calls for")
                    yield table

            metadata = shard_metadata(task.header, shard)
            sink = write_table_stream(len, task.schema, metadata, groups())
            ours = parquet.metadata.created_by
        except (OSError, pa.ArrowException, ValueError):
            return None
    record = record_of(shard, task.rows(shard), sink)
    if sha256(location, shard.file) == record.sha256:
        return record
    if recorded or ours == _created_by() or not ARROW.fullmatch(ours):
        return None
    return _record_of_file(location, shard, task)


def _created_by() -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [0]}), sink)
    written: str = pq.read_metadata(pa.BufferReader(sink.getvalue())).created_by
    return written


def _record_of_file(location: Location, shard: Shard, task: Task) -> ShardRecord:
    size = location.sizes()[shard.file]
    footer = int.from_bytes(location.read_range(shard.file, size - 8, 4), "little") + 8
    tail = location.read_range(shard.file, size - footer, footer)
    return ShardRecord(
        file=shard.file,
        first=shard.first,
        count=shard.count,
        rows=task.rows(shard),
        bytes=size,
        sha256=sha256(location, shard.file),
        footer=footer,
        footer_sha256=hashlib.sha256(tail).hexdigest(),
    )


def sha256(location: Location, name: str) -> str:
    """Checksum of a file, read in pieces."""
    digest, at, piece = hashlib.sha256(), 0, 1 << 22
    with location.reporting(name):
        while part := location.read_range(name, at, piece):
            digest.update(part)
            at += len(part)
    return digest.hexdigest()


def _quality(location: Location, task: Task) -> Quality | None:
    """Mean and largest divergence over the whole store, from the shards' own columns."""
    wanted = [n for n in (columns.ROWS, columns.KL_MEAN, columns.KL_MAX, columns.KL) if n in task.schema.names]
    if columns.KL not in wanted and columns.KL_MEAN not in wanted:
        return None
    total, highest, rows = 0.0, 0.0, 0
    for shard in task.shards:
        if shard.group == "items":
            continue
        with location.open(shard.file) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(wanted)
        means = table[wanted[0] if len(wanted) == 1 else columns.KL_MEAN].to_numpy()
        highs = table[wanted[-1]].to_numpy()
        counts = np.ones(len(means)) if len(wanted) == 1 else table[columns.ROWS].to_numpy().astype(np.float64)
        total += float(means @ counts)
        highest = max(highest, float(highs.max()))
        rows += int(counts.sum())
    return Quality(mean=total / rows, max=highest, rows=rows)
