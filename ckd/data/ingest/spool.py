"""Rows on their way from a source to polars: written to Parquet parts, so that memory does not grow with the source."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from ckd.data.atomic import naming

ROWS_PER_PART = 200_000

#: Columns of the interactions.
USER, ITEM, ORDER, SPLIT = "user", "item", "order", "split"

#: Columns of the items that are no attributes.
RAW, TEXT, IMAGE = "raw_id", "text", "image"

#: The row's number in its file, in both; no attribute can be called so.
LINE = "#line"

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Spool:
    """Collects rows of one table in a folder and gives them back as a lazy frame, in the order of adding.

    Args:
        folder: an empty or absent folder for the parts.
        schema: the columns. An `order` column may be integer in some parts and float in others.
    """

    def __init__(self, folder: Path, schema: dict[str, pl.DataType | type[pl.DataType]]) -> None:
        self.folder = folder
        self.schema = schema
        self.rows = 0
        self._pending: list[Sequence[object]] = []
        self._parts: list[Path] = []
        self._integer = True
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Sequence[object]) -> None:
        """One row, its values in the order of the schema."""
        self._pending.append(row)
        if len(self._pending) >= ROWS_PER_PART:
            self._flush()

    def add_frame(self, frame: pl.DataFrame) -> None:
        """Many rows, with the schema's columns."""
        self._flush()
        self._write(frame)

    def finish(self) -> pl.LazyFrame:
        """Everything added, to be scanned as often as one likes while the folder exists."""
        self._flush()
        if not self._parts:
            return pl.LazyFrame(schema=self.schema)
        scans = [pl.scan_parquet(part) for part in self._parts]
        if ORDER in self.schema:
            kind = pl.Int64 if self._integer else pl.Float64
            scans = [scan.with_columns(pl.col(ORDER).cast(kind)) for scan in scans]
        return pl.concat(scans)

    def _flush(self) -> None:
        if not self._pending:
            return
        schema = dict(self.schema)
        if ORDER in schema:
            at = list(schema).index(ORDER)
            schema[ORDER] = pl.Int64 if all(isinstance(row[at], int) for row in self._pending) else pl.Float64
        frame = pl.DataFrame(self._pending, schema=schema, orient="row")
        self._pending = []
        self._write(frame)

    def _write(self, frame: pl.DataFrame) -> None:
        if not frame.height:
            return
        if ORDER in self.schema:
            self._integer &= frame.schema[ORDER] == pl.Int64
        part = self.folder / f"part-{len(self._parts):05d}.parquet"
        with naming(part):
            frame.select(list(self.schema)).write_parquet(part, compression="lz4")
        self._parts.append(part)
        self.rows += frame.height


def interaction_spool(folder: Path) -> Spool:
    """A spool for interactions: raw user, raw item, time, line."""
    return Spool(folder / "interactions", {USER: pl.String, ITEM: pl.String, ORDER: pl.Int64, LINE: pl.UInt32})


def item_spool(folder: Path, names: Iterable[str], image: type[pl.DataType] = pl.String) -> Spool:
    """A spool for items: raw id, line, and the named columns, which are strings except perhaps the image."""
    kinds = {name: image if name == IMAGE else pl.String for name in names}
    return Spool(folder / "items", {RAW: pl.String, LINE: pl.UInt32, **kinds})


def parse_time(text: str) -> int | float | None:
    """The number that `text` writes, an integer where it fits 64 bits; None where it is no finite number."""
    if _INTEGER.fullmatch(text):
        # Python refuses to read thousands of digits.
        digits = text.lstrip("+-").lstrip("0")[:20]
        value = int(digits or "0") * (-1 if text.startswith("-") else 1)
        return value if -(2**63) <= value < 2**63 else None
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else None
    return None


def parse_times(texts: pl.Series) -> pl.Series | None:
    """`parse_time` for a column: all as integers, else all as floats, else None when a value is no such number."""
    whole = texts.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole
    beyond = whole.is_null() & texts.str.contains(f"^{_INTEGER.pattern}$")
    if beyond.any() or not texts.str.contains(f"^(?:{_NUMBER.pattern})$").all():
        return None
    numbers = texts.cast(pl.Float64, strict=False)
    return numbers if not numbers.null_count() and numbers.is_finite().all() else None
