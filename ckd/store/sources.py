"""How the reader gets at one batch's matrix, for the codecs that store matrices."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ckd.store.binding import BatchIndex
from ckd.store.codecs.base import Float
from ckd.store.layout import check_footer, columns, footer_metadata, matrix_of
from ckd.store.location import Location
from ckd.store.manifest import Manifest, ShardRecord, damaged
from ckd.store.pages import byte_array, page

#: Parquet files that a source of lists keeps open.
OPEN_FILES = 16


class MatrixSource(Protocol):
    """Gives the matrix of a batch, verified."""

    def read(self, batch_id: int) -> Float:
        """(rows, cols) log-scores."""
        ...


@dataclass(frozen=True)
class Places:
    """Where the batches of one shard lie: offsets of the hash's page, the payload's page, and its end; each (n,)."""

    hash: npt.NDArray[np.int64]
    payload: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


class PayloadSource:
    """Reads a batch with one read of the file, and decodes it from where the bytes lie."""

    def __init__(self, location: Location, manifest: Manifest, codec: Any, index: BatchIndex, compare: bool) -> None:
        self.location = location
        self.manifest = manifest
        self.codec = codec
        self.index = index
        self.compare = compare
        self._places: dict[int, Places] = {}

    def read(self, batch_id: int) -> Float:
        """The matrix as the codec gives it."""
        number, at = divmod(batch_id, self.manifest.header.shard_batches)
        record = self.manifest.shards[number]
        path = self.location.path(record.file)
        # Two threads may both look a shard up at first; they find the same.
        places = self._places.get(number) or self._places.setdefault(number, self._look_up(record))
        start, middle, end = int(places.hash[at]), int(places.payload[at]), int(places.end[at])
        with self.location.reporting(record.file):
            buffer = memoryview(self.location.read_range(record.file, start, end - start))
        try:
            if len(buffer) != end - start:
                raise ValueError(f"file ends at {start + len(buffer)}, expected {end}")
            found = int.from_bytes(page(buffer[: middle - start]), "little")
            if self.compare:
                self.index.check(batch_id, found, path)
            payload = byte_array(page(buffer[middle - start :]))
            return self.codec.decode(payload, int(self.index.rows[batch_id]), int(self.index.cols[batch_id]))
        except ValueError as error:
            raise damaged(path, f"batch {batch_id}: {error}") from None

    def _look_up(self, record: ShardRecord) -> Places:
        metadata = footer_metadata(check_footer(self.location, record, self.manifest))
        at = {metadata.schema.column(i).name: i for i in range(metadata.num_columns)}
        places = np.empty((3, metadata.num_row_groups), dtype=np.int64)
        for n in range(metadata.num_row_groups):
            group = metadata.row_group(n)
            payload = group.column(at[columns.PAYLOAD])
            places[0, n] = group.column(at[columns.HASH]).data_page_offset
            places[1, n] = payload.data_page_offset
            places[2, n] = payload.data_page_offset + payload.total_compressed_size
        return Places(*places)


class TensorSource:
    """Reads a batch's lists through Arrow's own Parquet reader."""

    def __init__(self, location: Location, manifest: Manifest, index: BatchIndex, compare: bool) -> None:
        self.location = location
        self.manifest = manifest
        self.index = index
        self.compare = compare
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        # A Parquet file serves one thread at a time, and the eviction of one must not meet its use.
        self._lock = threading.Lock()

    def read(self, batch_id: int) -> Float:
        """The float16 matrix."""
        number, at = divmod(batch_id, self.manifest.header.shard_batches)
        record = self.manifest.shards[number]
        path = self.location.path(record.file)
        with self._lock:
            try:
                table = self._file(number, record).read_row_group(
                    at, columns=[columns.BATCH, columns.HASH, columns.SCORES], use_threads=False
                )
            except (OSError, pa.ArrowException) as error:
                raise damaged(path, f"batch {batch_id}: {' '.join(str(error).split())}") from None
        rows, cols = int(self.index.rows[batch_id]), int(self.index.cols[batch_id])
        if table.num_rows != rows:
            raise damaged(path, f"batch {batch_id}: {table.num_rows} rows, expected {rows}")
        if self.compare:
            hashes = table[columns.HASH].to_numpy()
            wrong = hashes[hashes != self.index.hashes[batch_id]]
            self.index.check(batch_id, int(wrong[0] if wrong.size else hashes[0]), path)
        return matrix_of(table[columns.SCORES])[:, :cols]

    def _file(self, number: int, record: ShardRecord) -> pq.ParquetFile:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        check_footer(self.location, record, self.manifest)
        file = pq.ParquetFile(self.location.open(record.file), page_checksum_verification=True)
        self._open[number] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close(force=True)
        return file
