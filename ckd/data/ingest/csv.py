"""A plain CSV or TSV table of user, item, timestamp, and optionally one of items beside it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import polars as pl

from ckd.data.ingest.delimited import (
    Items,
    csv_rows,
    interactions_file,
    items_file,
    of_width,
    quoted_fields,
    read_interactions,
    spool_items,
)
from ckd.data.ingest.lines import head
from ckd.data.ingest.raw import RawDomain, ReadOptions, files_with
from ckd.errors import DataError

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


class Csv:
    """The first line names the columns; a time is a number or an ISO 8601 date."""

    k_core = 1

    def detect(self, source: Path) -> bool:
        return source.name.endswith(SUFFIXES) if source.is_file() else bool(files_with(source, SUFFIXES))

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        path = source if source.is_file() else interactions_file(source, SUFFIXES, _header)
        separator = _separator(path)
        interactions = read_interactions(
            path, options, separator=separator, quoted=True, header_of=_names(separator), dates=True
        )
        items = options.items or items_file(path, SUFFIXES, _header)
        return RawDomain(path, interactions, items, _read_items(items, options) if items else None)


def _read_items(path: Path, options: ReadOptions) -> pl.LazyFrame:
    rows = csv_rows(path, options, _separator(path))
    number, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    known = Items.of(header, f"{path}:{number}")
    return spool_items(path, of_width(path, rows, len(header), options), known, options)


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _names(separator: str) -> Callable[[str, str], list[str]]:
    split = quoted_fields(separator)

    def names(line: str, where: str) -> list[str]:
        try:
            return [name.strip() for name in split(line)]
        except csv.Error as error:
            raise DataError(f"{where}: the header is not a row of CSV ({error}).") from None

    return names


def _header(path: Path) -> list[str]:
    first = head(path, 1)
    if not first:
        raise DataError(f"{path}: empty or unreadable.")
    return [name.strip(' "') for name in first[0].split(_separator(path))]


FORMAT = Csv()
