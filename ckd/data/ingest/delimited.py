"""Tables whose first line names the columns: what RecBole's atomic files, CSV and Parquet have in common."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from ckd.data.ingest.lines import Block, blocks, lines
from ckd.data.ingest.problems import one_line
from ckd.data.ingest.raw import ReadOptions, files_with, the_file
from ckd.data.ingest.spool import (
    IMAGE,
    ITEM,
    LINE,
    ORDER,
    RAW,
    TEXT,
    USER,
    Spool,
    interaction_spool,
    item_spool,
    parse_time,
    parse_times,
)
from ckd.data.ingest.text import ALIASES, clean, ordered
from ckd.errors import DataError

USER_NAMES = ("user", "user_id", "userId", "uid", "reviewerID")
ITEM_NAMES = ("item", "item_id", "itemId", "iid", "parent_asin", "asin", "movieId")
TIME_NAMES = ("timestamp", "time", "ts", "unixReviewTime", "datetime", "date")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Split = Callable[[str], Sequence[str]]


def find_column(header: Sequence[str], names: Sequence[str], what: str, where: str) -> int:
    """Position of the column for `what`, by the first of `names` that the header has.

    Raises:
        DataError: none is there; the line begins with `where`.
    """
    for name in names:
        if name in header:
            return header.index(name)
    has = one_line(", ".join(header))
    raise DataError(f"{where}: no column for the {what} ({', '.join(names)}); the columns are {has}.")


@dataclass(frozen=True)
class Interactions:
    """Where user, item and time are in a row of `width` fields."""

    width: int
    user: int
    item: int
    time: int

    @classmethod
    def of(cls, header: Sequence[str], where: str) -> Interactions:
        """From the column names; raises DataError for a missing or repeated one."""
        refuse_repeated(header, where)
        return cls(
            len(header),
            find_column(header, USER_NAMES, "user", where),
            find_column(header, ITEM_NAMES, "item", where),
            find_column(header, TIME_NAMES, "time", where),
        )


def refuse_repeated(header: Sequence[str], where: str) -> None:
    """Raise DataError when two columns have one name."""
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{where}: two columns are called {name!r}; rename one.")


def read_interactions(
    path: Path,
    options: ReadOptions,
    *,
    separator: str,
    quoted: bool,
    header_of: Callable[[str, str], list[str]],
    dates: bool = False,
) -> pl.LazyFrame:
    """Interactions of a delimited file.

    Args:
        path: the file.
        options: where to spool, and what to do with malformed rows.
        separator: between fields.
        quoted: whether a field may stand in double quotes.
        header_of: gives the column names, from the header line and the words `file:line` for messages.
        dates: whether the time may be an ISO 8601 date.
    """
    spool = interaction_spool(options.scratch)
    split: Split = quoted_fields(separator) if quoted else lambda line: line.split(separator)
    columns: Interactions | None = None
    time: Callable[[str], int | float | None] = parse_time
    for block in blocks(path, options.problems, options.progress):
        if columns is None:
            number, header = next(block.lines(), (0, ""))
            if not number:
                continue
            columns = Interactions.of(header_of(header, f"{path}:{number}"), f"{path}:{number}")
            block = _after(block, number)
            first = next(block.lines(), (0, ""))[1]
            if dates and _is_date(first, split, columns):
                time = parse_date
        frame = None if time is parse_date else _fast(block, columns, separator, quoted)
        if frame is not None:
            spool.add_frame(frame)
        else:
            _slow(block, columns, split, time, path, options, spool)
    if columns is None:
        raise DataError(f"{path}: no line but blank ones.")
    return spool.finish()


def quoted_fields(separator: str) -> Split:
    """Splits one line of CSV; raises csv.Error for an open quote."""
    return lambda line: next(csv.reader([line], delimiter=separator, strict=True))


def parse_date(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date or time, UTC where it names no zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _is_date(line: str, split: Split, columns: Interactions) -> bool:
    try:
        fields = split(line) if line else []
    except csv.Error:
        return False
    text = fields[columns.time] if len(fields) == columns.width else ""
    return parse_time(text) is None and parse_date(text) is not None


def _after(block: Block, number: int) -> Block:
    """The lines of `block` after line `number`."""
    rest = block.data.split(b"\n", number - block.first + 1)
    return Block(number + 1, rest[-1] if len(rest) > number - block.first + 1 else b"")


def _fast(block: Block, columns: Interactions, separator: str, quoted: bool) -> pl.DataFrame | None:
    """The rows of a block in which nothing is unusual; None leaves the block to `_slow`, which alone judges rows."""
    if b"\r" in block.data or (quoted and b'"' in block.data):
        return None
    try:
        read = pl.read_csv(block.data, has_header=False, separator=separator, infer_schema=False, quote_char=None)
    except pl.exceptions.PolarsError:
        return None
    if read.width != columns.width or sum(read.null_count().row(0)):
        return None
    times = parse_times(read.to_series(columns.time))
    if times is None:
        return None
    return pl.DataFrame(
        {
            USER: read.to_series(columns.user),
            ITEM: read.to_series(columns.item),
            ORDER: times,
            LINE: pl.int_range(block.first, block.first + read.height, dtype=pl.UInt32, eager=True),
        }
    )


def _slow(
    block: Block,
    columns: Interactions,
    split: Split,
    time: Callable[[str], int | float | None],
    path: Path,
    options: ReadOptions,
    spool: Spool,
) -> None:
    bad = options.problems.row
    for number, line in block.lines():
        try:
            fields = split(line)
        except csv.Error as error:
            bad(path, number, "not a row of CSV", str(error))
            continue
        if len(fields) != columns.width:
            bad(path, number, "wrong number of fields", f"{len(fields)}, the header has {columns.width}")
            continue
        user, item, when = fields[columns.user], fields[columns.item], time(fields[columns.time])
        if not user or not item:
            bad(path, number, "no user id" if not user else "no item id")
        elif when is None:
            kind = "the time is no number" if time is parse_time else "the time is no date"
            bad(path, number, kind, repr(fields[columns.time]))
        else:
            spool.add((user, item, when, number))


@dataclass(frozen=True)
class Items:
    """Where an item's id, text, image and attributes are in a row.

    Attributes:
        raw: position of the id.
        names: names of the other columns, as the domain has them: attributes in their order, then text and image.
        positions: where each is.
    """

    raw: int
    names: list[str]
    positions: list[int]

    @classmethod
    def of(cls, header: Sequence[str], where: str, leave_out: Iterable[str] = ()) -> Items:
        """From the column names; raises DataError where no column holds the id or a name is repeated or reserved."""
        refuse_repeated(header, where)
        raw = find_column(header, (*ITEM_NAMES, RAW), "item", where)
        positions = {}
        for position, name in enumerate(header):
            if position == raw or name in leave_out:
                continue
            known = ALIASES.get(name, name)
            known = name if known in header else known
            if known in (ITEM, RAW, LINE) or known in positions or not known:
                raise DataError(f"{where}: an attribute cannot be called {name!r} here; rename the column.")
            positions[known] = position
        last = [name for name in (TEXT, IMAGE) if name in positions]
        names = [*ordered(name for name in positions if name not in last), *last]
        return cls(raw, names, [positions[name] for name in names])


def spool_items(
    path: Path,
    rows: Iterable[tuple[int, Sequence[object]]],
    columns: Items,
    options: ReadOptions,
    image: type[pl.DataType] = pl.String,
) -> pl.LazyFrame:
    """Rows of an item file, with their line numbers, as the items of a RawDomain: cleaned strings."""
    spool = item_spool(options.scratch, columns.names, image)
    at_image = columns.names.index(IMAGE) if IMAGE in columns.names else -1
    for number, fields in rows:
        raw = fields[columns.raw]
        if raw is None or raw == "":
            options.problems.row(path, number, "no item id")
            continue
        values: list[object] = [
            _image(path, fields[p]) if i == at_image else clean(fields[p]) for i, p in enumerate(columns.positions)
        ]
        spool.add((str(raw), number, *values))
    return spool.finish()


def csv_rows(path: Path, options: ReadOptions, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and fields of every record of a CSV file; fields in quotes may hold line breaks.

    A record that is none is a problem at its first line, and stands for all lines that it takes in: a quote that is
    never closed takes in all that follow.
    """
    taken: list[int] = []

    def text() -> Iterator[str]:
        for number, line in lines(path, options.problems, options.progress):
            taken.append(number)
            yield line + "\n"

    reader = csv.reader(text(), delimiter=separator, strict=True)
    while True:
        taken.clear()
        try:
            record = next(reader, None)
        except csv.Error as error:
            until = f", a quote is open until line {taken[-1]}" if len(taken) > 1 else ""
            options.problems.row(path, taken[0], "not a row of CSV", f"{error}{until}", rows=len(taken))
            continue
        if record is None:
            return
        yield taken[0], record


def of_width(
    path: Path, rows: Iterable[tuple[int, Sequence[str]]], width: int, options: ReadOptions
) -> Iterator[tuple[int, Sequence[str]]]:
    """The rows that have `width` fields; another number of fields is a problem."""
    for number, fields in rows:
        if len(fields) == width:
            yield number, fields
        else:
            options.problems.row(path, number, "wrong number of fields", f"{len(fields)}, the header has {width}")


def interactions_file(folder: Path, suffixes: tuple[str, ...], header: Callable[[Path], list[str]]) -> Path:
    """The one table in `folder` that has a column of users; where none has, the one that is no table of items."""
    headers: dict[Path, set[str]] = {}
    for path in files_with(folder, suffixes):
        headers[path] = set()
        # One that cannot be read is refused where it is needed.
        with suppress(DataError):
            headers[path] = set(header(path))
    found = [path for path, names in headers.items() if names & set(USER_NAMES)]
    found = found or [path for path, names in headers.items() if not names & {*ITEM_NAMES, RAW}]
    return found[0] if len(found) == 1 else the_file(folder, suffixes, "interactions")


def items_file(path: Path, suffixes: tuple[str, ...], header: Callable[[Path], list[str]]) -> Path | None:
    """The one table beside `path` that has a column of items but none of users.

    Raises:
        DataError: there are several, or a table beside it cannot be read, which might be the one.
    """
    found = []
    for other in files_with(path.parent, suffixes):
        if other == path:
            continue
        try:
            names = set(header(other))
        except DataError as error:
            raise DataError(
                f"{error} It lies beside {path.name} and may hold its items: fetch it again, move it away, or name "
                "the items with prepare.items=PATH."
            ) from None
        if names & {*ITEM_NAMES, RAW} and not names & set(USER_NAMES):
            found.append(other)
    if len(found) > 1:
        listed = ", ".join(other.name for other in found)
        raise DataError(f"{path}: {len(found)} item tables lie beside it ({listed}). Name one with prepare.items=PATH.")
    return found[0] if found else None


def _image(path: Path, value: object) -> object:
    """A picture's bytes or address; a path counts from the folder of the file that names it."""
    if not value or isinstance(value, bytes):
        return value or None
    text = str(value)
    return text if "://" in text else str((path.parent / text).resolve())
