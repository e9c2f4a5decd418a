"""How a shard lies in its Parquet file: names, columns, metadata. docs/store-format.md says the same for readers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ckd.errors import StoreError
from ckd.store.location import Location
from ckd.store.manifest import Header, Manifest, ShardRecord, check_format, damaged, refuse

#: Key of a shard's metadata in its Parquet footer.
METADATA = b"ckd.shard"


class columns:
    """Column names of the shards' tables, in one place."""

    BATCH = "batch"
    ROWS = "rows"
    COLUMNS = "columns"
    HASH = "hash"
    KL_MEAN = "kl_mean"
    KL_MAX = "kl_max"
    PAYLOAD = "payload"
    ROW = "row"
    SCORES = "scores"
    ID = "id"
    TARGET = "target"
    SCALE = "scale"
    KL = "kl"
    VECTOR = "vector"


@dataclass(frozen=True)
class Shard:
    """A contiguous range of batches, instances or items, and the file that holds it."""

    group: Literal["batches", "instances", "items"]
    number: int
    first: int
    count: int

    @property
    def file(self) -> str:
        return f"{'items' if self.group == 'items' else 'part'}-{self.number:05d}.parquet"

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.count)


def cut(group: Literal["batches", "instances", "items"], total: int, size: int) -> list[Shard]:
    """The shards of `total` things, `size` in each but the last."""
    starts = range(0, total, size)
    return [Shard(group, number, first, min(size, total - first)) for number, first in enumerate(starts)]


def payload_schema(lossy: bool) -> pa.Schema:
    """Columns of matrices stored as one binary value per batch; a row group is one batch, of one row."""
    quality = [(columns.KL_MEAN, pa.float64()), (columns.KL_MAX, pa.float64())] if lossy else []
    # The hash lies before the payload, so that one read covers what every step needs.
    fields = [
        (columns.BATCH, pa.int64()),
        (columns.ROWS, pa.int32()),
        (columns.COLUMNS, pa.int32()),
        *quality,
        (columns.HASH, pa.uint64()),
        (columns.PAYLOAD, pa.large_binary()),
    ]
    return _required(fields)


def tensor_schema(width: int) -> pa.Schema:
    """Columns of matrices stored as lists; a row group is one batch, a table row one row of its matrix."""
    fields = [
        (columns.BATCH, pa.int64()),
        (columns.HASH, pa.uint64()),
        (columns.ROW, pa.int32()),
        (columns.COLUMNS, pa.int32()),
        (columns.SCORES, _list(width)),
    ]
    return _required(fields)


def vector_schema(dim: int) -> pa.Schema:
    """Columns of vectors: instances or items; `target` and `kl` are 0 for items. The vector is `vector * scale`."""
    fields = [
        (columns.ID, pa.int64()),
        (columns.TARGET, pa.int64()),
        (columns.SCALE, pa.float32()),
        (columns.KL, pa.float64()),
        (columns.VECTOR, _list(dim)),
    ]
    return _required(fields)


def _list(width: int) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float16(), nullable=False), width)


def _required(fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def binary(value: bytes) -> pa.Array:
    """A column of one binary value, without copying it."""
    offsets = pa.py_buffer(np.array([0, len(value)], dtype=np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(value)])


def lists(matrix: npt.NDArray[np.float16]) -> pa.Array:
    """A (n, width) float16 matrix as a column of n lists, without copying it."""
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, type=_list(matrix.shape[1]))


def matrix_of(column: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    """The inverse of `lists`."""
    parts = [chunk.flatten().to_numpy().reshape(-1, chunk.type.list_size) for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Sink:
    """A stream for Arrow that hashes what passes, and keeps what it writes after `mark`."""

    def __init__(self, write: Callable[[Any], Any]) -> None:
        self._write = write
        self.digest = hashlib.sha256()
        self.size = 0
        self.tail: bytearray | None = None
        self.closed = False

    def mark(self) -> None:
        self.tail = bytearray()

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        if self.tail is not None:
            self.tail += view
        written = 0
        # A raw file may take less than it was given, at the file-size limit of the process for one.
        while written < len(view):
            written += self._write(view[written:]) or len(view) - written
        self.size += written
        return written

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True


def _one_ahead(groups: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The groups in order, each computed in a background thread while the one before is checksummed and written."""
    remaining, end = iter(groups), object()
    with ThreadPoolExecutor(1, thread_name_prefix="ckd-encode") as pool:
        pending = pool.submit(next, remaining, end)
        while (group := pending.result()) is not end:
            pending = pool.submit(next, remaining, end)
            yield group


def write_table_stream(
    write: Callable[[Any], Any], schema: pa.Schema, metadata: bytes, groups: Iterable[pa.Table]
) -> Sink:
    """Write a shard, one row group for each table; the same input gives the same bytes."""
    sink = Sink(write)
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        # Parquet itself has lists of any size only; that theirs is fixed, Arrow's schema beside them says.
        store_schema=any(pa.types.is_fixed_size_list(field.type) for field in schema),
        data_page_version="1.0",
        version="2.6",
    )
    try:
        for group in _one_ahead(groups):
            writer.write_table(group, row_group_size=max(group.num_rows, 1))
        writer.add_key_value_metadata({METADATA: metadata})
        sink.mark()
        writer.close()
    except BaseException:
        # The file is thrown away. A writer left open would be closed, and might raise, when it is collected.
        with suppress(Exception):
            writer.close()
        raise
    return sink


def shard_metadata(header: Header, shard: Shard) -> bytes:
    """What a shard says of itself: the store's header, its own name, and its range."""
    own = {"file": shard.file, "group": shard.group, "first": shard.first, "count": shard.count}
    return json.dumps({**header.as_dict(), "shard": own}, sort_keys=True).encode()


def record_of(shard: Shard, rows: int, sink: Sink) -> ShardRecord:
    """What the manifest says of a shard that was just written."""
    assert sink.tail is not None
    footer = int.from_bytes(sink.tail[-8:-4], "little") + 8
    return ShardRecord(
        file=shard.file,
        first=shard.first,
        count=shard.count,
        rows=rows,
        bytes=sink.size,
        sha256=sink.digest.hexdigest(),
        footer=footer,
        footer_sha256=hashlib.sha256(sink.tail[-footer:]).hexdigest(),
    )


def identify(location: Location, shard: Shard, header: Header) -> bool:
    """Whether the file of a shard is readable as Parquet and says that it is this shard.

    Raises:
        StoreError: it is whole, but was made for something else, which nothing here may overwrite.
    """
    found = _described(location, shard.file, header)
    return found is not None and json.dumps(found, sort_keys=True).encode() == shard_metadata(header, shard)


def _described(location: Location, name: str, header: Header) -> dict[str, Any] | None:
    """What a shard's file says of itself; None where it cannot be read.

    Raises:
        StoreError: it says that it is another shard, or another store's.
    """
    path = location.path(name)
    try:
        with location.open(name) as file:
            values: dict[str, Any] = json.loads((pq.read_metadata(file).metadata or {})[METADATA])
        own = dict(values["shard"])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    check_format(values, path)
    try:
        found = Header.from_dict(values, path)
    except StoreError:
        return None
    found.require(header, path)
    if own.get("file") != name:
        refuse(f"holds what was written as {own.get('file')}, expected {name}", path)
    return values


def check_footer(location: Location, record: ShardRecord, manifest: Manifest) -> bytes:
    """The footer of a shard, proven to be the one that was written.

    Raises:
        StoreError: the footer was changed, or belongs to another shard or store: says which.
    """
    with location.reporting(record.file):
        found = location.read_range(record.file, record.bytes - record.footer, record.footer)
    digest = hashlib.sha256(found).hexdigest()
    if digest != record.footer_sha256:
        _described(location, record.file, manifest.header)
        raise damaged(location.path(record.file), f"footer hashes to {digest}, expected {record.footer_sha256}")
    return found


def footer_metadata(footer: bytes) -> pq.FileMetaData:
    """Parquet metadata from the bytes of a footer alone."""
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
