"""A plain Parquet table of user, item, timestamp, and optionally one of items beside it; a row number is the line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ckd.data.ingest.delimited import Interactions, Items, interactions_file, items_file, spool_items
from ckd.data.ingest.raw import RawDomain, ReadOptions, files_with
from ckd.data.ingest.spool import IMAGE, ITEM, LINE, ORDER, USER, interaction_spool
from ckd.errors import DataError

SUFFIXES = (".parquet", ".pq")
BATCH_ROWS = 131_072


class Parquet:
    """Ids are strings or integers, times numbers or datetimes."""

    k_core = 1

    def detect(self, source: Path) -> bool:
        return source.name.endswith(SUFFIXES) if source.is_file() else bool(files_with(source, SUFFIXES))

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        path = source if source.is_file() else interactions_file(source, SUFFIXES, _header)
        interactions = _read_interactions(path, options)
        items = options.items or items_file(path, SUFFIXES, _header)
        return RawDomain(path, interactions, items, _read_items(items, options) if items else None)


def _read_interactions(path: Path, options: ReadOptions) -> pl.LazyFrame:
    spool = interaction_spool(options.scratch)
    with _open(path) as file:
        header = file.schema_arrow.names
        columns = Interactions.of(header, str(path))
        names = [header[columns.user], header[columns.item], header[columns.time]]
        for first, frame in _batches(path, file, names, options):
            user, item = (_ids(path, frame.to_series(i)) for i in (0, 1))
            time = _times(path, frame.to_series(2))
            line = pl.int_range(first, first + frame.height, dtype=pl.UInt32, eager=True)
            rows = pl.DataFrame({USER: user, ITEM: item, ORDER: time, LINE: line})
            spool.add_frame(_without_gaps(path, rows, options))
    return spool.finish()


def _without_gaps(path: Path, rows: pl.DataFrame, options: ReadOptions) -> pl.DataFrame:
    for name, what in ((USER, "no user id"), (ITEM, "no item id"), (ORDER, "the time is no number")):
        value = pl.col(name)
        usable = value.is_finite() if rows.schema[name] == pl.Float64 else value.is_not_null()
        usable = usable & (value != "") if name != ORDER else usable
        usable = usable.fill_null(False)
        for line in rows.filter(~usable)[LINE].to_list():
            options.problems.row(path, line, what)
        rows = rows.filter(usable)
    return rows


def _ids(path: Path, column: pl.Series) -> pl.Series:
    kind = column.dtype
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{path}: column {column.name!r} is {kind}; ids must be strings or integers.")
    return column.cast(pl.String)


def _times(path: Path, column: pl.Series) -> pl.Series:
    kind = column.dtype
    if not (kind.is_integer() or kind.is_float() or kind in (pl.Datetime, pl.Date)):
        raise DataError(f"{path}: column {column.name!r} is {kind}; a time must be a number or a datetime.")
    # Not strict: a number beyond 64 bits with a sign becomes a gap, which is reported with its row.
    return column.cast(pl.Float64 if kind.is_float() else pl.Int64, strict=False)


def _read_items(path: Path, options: ReadOptions) -> pl.LazyFrame:
    with _open(path) as file:
        header = file.schema_arrow.names
        columns = Items.of(header, str(path))
        image: type[pl.DataType] = pl.String
        if IMAGE in columns.names:
            kind = file.schema_arrow.field(columns.positions[columns.names.index(IMAGE)]).type
            image = pl.Binary if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else pl.String

        def rows() -> Iterator[tuple[int, Sequence[object]]]:
            for first, frame in _batches(path, file, header, options):
                yield from enumerate(frame.iter_rows(), first)

        return spool_items(path, rows(), columns, options, image)


def _batches(
    path: Path, file: pq.ParquetFile, names: list[str], options: ReadOptions
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Number of the first row and the columns `names` of successive batches."""
    first, total = 1, file.metadata.num_rows
    batches = file.iter_batches(BATCH_ROWS, columns=names)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: damaged near row {first} ({_reason(error)}). Fetch it again.") from None
        if batch is None:
            return
        frame = pl.DataFrame(pl.from_arrow(batch)).select(names)
        yield first, frame
        first += frame.height
        if options.progress:
            options.progress(first - 1, total, "rows", path.name)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({_reason(error)}).") from None


def _header(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.schema_arrow.names)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


FORMAT = Parquet()
