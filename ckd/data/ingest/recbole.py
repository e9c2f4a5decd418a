"""RecBole's atomic files: `NAME.inter` with `user_id:token`, `item_id:token`, `timestamp:float`, and `NAME.item`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ckd.data.ingest.delimited import Items, of_width, read_interactions, spool_items
from ckd.data.ingest.lines import lines
from ckd.data.ingest.raw import RawDomain, ReadOptions, files_with, the_file
from ckd.errors import DataError

BENCHMARK = (".train.inter", ".valid.inter", ".test.inter")


class RecBole:
    """Tab-separated, the first line names and types the columns, nothing is quoted."""

    k_core = 1

    def detect(self, source: Path) -> bool:
        found = [source] if source.is_file() else files_with(source, [".inter"])
        return any(path.name.endswith(".inter") and not path.name.endswith(BENCHMARK) for path in found)

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        path = the_file(source, [".inter"], "interactions")
        interactions = read_interactions(path, options, separator="\t", quoted=False, header_of=names)
        items = options.items or path.with_suffix(".item")
        if options.items is None and not items.exists():
            return RawDomain(path, interactions)
        return RawDomain(path, interactions, items, read_items(items, options))


def names(header: str, where: str) -> list[str]:
    """Column names without their types; raises DataError where one has no type."""
    found = []
    for column in header.split("\t"):
        name, colon, _ = column.partition(":")
        if not colon:
            raise DataError(f"{where}: column {column!r} has no type; a RecBole header reads user_id:token<TAB>….")
        found.append(name)
    return found


def read_items(path: Path, options: ReadOptions) -> pl.LazyFrame:
    """The items of an `.item` file; columns of numbers in sequence are no text and are left out."""
    rows = lines(path, options.problems, options.progress)
    number, header = next(rows, (1, ""))
    where = f"{path}:{number}"
    columns = names(header, where)
    vectors = [name for name, column in zip(columns, header.split("\t"), strict=True) if column.endswith(":float_seq")]
    fields = ((number, line.split("\t")) for number, line in rows)
    known = Items.of(columns, where, leave_out=vectors)
    return spool_items(path, of_width(path, fields, len(columns), options), known, options)


FORMAT = RecBole()
