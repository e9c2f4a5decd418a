"""The benchmark form that UniSRec ships: every instance written out, with the split it belongs to.

`NAME.train.inter`, `.valid.inter`, `.test.inter` hold `user_id:token`, `item_id_list:token_seq`, `item_id:token`;
`NAME.text` the items' texts by raw id; `NAME.item2index` and `.user2index` the numbers of raw ids, from 0. The split
and the numbers are kept as given: item n of the source is item n + 1 of the domain.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import polars as pl

from ckd.data.ingest.delimited import find_column, refuse_repeated
from ckd.data.ingest.expanded import Row, merge
from ckd.data.ingest.lines import lines
from ckd.data.ingest.raw import Numbering, RawDomain, ReadOptions, files_with
from ckd.data.ingest.recbole import names
from ckd.data.ingest.spool import ITEM, LINE, ORDER, RAW, SPLIT, TEXT, USER
from ckd.errors import DataError

PARTS = ("train", "valid", "test")


class UniSRec:
    """Split and numbering are kept as given, so nothing is filtered."""

    k_core = 1

    def detect(self, source: Path) -> bool:
        found = [source] if source.is_file() else files_with(source, [".inter"])
        return any(path.name.endswith(".train.inter") for path in found)

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        base = _base(source)
        users = _Index.read(base.with_name(base.name + ".user2index"), options)
        items = _Index.read(base.with_name(base.name + ".item2index"), options)
        rows: dict[int, list[Row]] = defaultdict(list)
        for code, part in enumerate(PARTS):
            _read_part(base.with_name(f"{base.name}.{part}.inter"), code, users, items, rows, options)
        if not rows:
            raise DataError(f"{base.with_name(base.name + '.train.inter')}: no instances.")
        text = options.items or base.with_name(base.name + ".text")
        return RawDomain(
            file=base.with_name(base.name + ".train.inter"),
            interactions=_interactions(rows, users.raw, items.raw).lazy(),
            items_file=text,
            items=_read_text(text, items, options).lazy(),
            numbering=Numbering(pl.Series(RAW, users.raw), pl.Series(RAW, items.raw)),
            also=(*(base.with_name(f"{base.name}.{part}.inter") for part in PARTS[1:]), users.file, items.file),
        )


def _base(source: Path) -> Path:
    """`folder/NAME`, which the files' names begin with."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    found = [source] if source.is_file() else files_with(source, [".train.inter"])
    if len(found) != 1 or not found[0].name.endswith(".train.inter"):
        listed = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{source}: expected one NAME.train.inter, found {listed}. Give the path of that file.")
    return found[0].with_name(found[0].name.removesuffix(".train.inter"))


class _Index:
    """Raw ids by number."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.raw: list[str] = []
        self.lines: list[int] = []
        self.position: dict[str, int] = {}

    @classmethod
    def read(cls, path: Path, options: ReadOptions) -> _Index:
        """An index file; numbers must be distinct, and become positions in their order."""
        rows: dict[int, tuple[str, int]] = {}
        for number, line in lines(path, options.problems):
            raw, tab, digits = line.partition("\t")
            if not tab or not raw or not (digits.isascii() and digits.isdigit() and len(digits) < 20):
                options.problems.row(path, number, "not a raw id, tab, number", repr(line[:60]))
                continue
            index = int(digits)
            if index in rows:
                options.problems.row(path, number, "a number given twice", f"{index}, first on line {rows[index][1]}")
            else:
                rows[index] = raw, number
        found = cls(path)
        seen: dict[str, int] = {}
        for index in sorted(rows):
            raw, number = rows[index]
            if raw in seen:
                options.problems.row(path, number, "an id given twice", f"{raw!r}, first on line {seen[raw]}")
                continue
            seen[raw] = number
            found.position[str(index)] = len(found.raw)
            found.raw.append(raw)
            found.lines.append(number)
        return found


def _read_part(
    path: Path, code: int, users: _Index, items: _Index, rows: dict[int, list[Row]], options: ReadOptions
) -> None:
    """Add the instances of one file to `rows`, by user."""
    reading = lines(path, options.problems, options.progress)
    number, line = next(reading, (1, ""))
    where = f"{path}:{number}"
    header = names(line, where)
    refuse_repeated(header, where)
    at_user = find_column(header, ("user_id",), "user", where)
    at_history = find_column(header, ("item_id_list",), "history", where)
    at_target = find_column(header, ("item_id",), "target", where)
    bad = options.problems.row
    for number, line in reading:
        fields = line.split("\t")
        if len(fields) != len(header):
            bad(path, number, "wrong number of fields", f"{len(fields)}, the header has {len(header)}")
            continue
        tokens = [*fields[at_history].split(), fields[at_target]]
        unknown = [token for token in tokens if token not in items.position]
        if fields[at_user] not in users.position:
            bad(path, number, f"a user that is not in {users.file.name}", repr(fields[at_user]))
        elif unknown:
            bad(path, number, f"an item that is not in {items.file.name}", repr(unknown[0]))
        elif len(tokens) == 1:
            bad(path, number, "an instance without history", f"user {fields[at_user]!r}")
        else:
            *history, target = (items.position[token] for token in tokens)
            row = Row(tuple(history), target, code, f"{path}:{number}")
            rows[users.position[fields[at_user]]].append(row)


def _interactions(rows: dict[int, list[Row]], users: list[str], items: list[str]) -> pl.DataFrame:
    cap = max(len(row.history) for found in rows.values() for row in found)
    user_column: list[str] = []
    item_column: list[str] = []
    positions: list[int] = []
    codes: list[int] = []
    for user in sorted(rows):
        sequence, splits = merge(rows[user], cap, users[user])
        user_column += [users[user]] * len(sequence)
        item_column += [items[item] for item in sequence]
        positions += range(len(sequence))
        codes += splits
    return pl.DataFrame(
        {USER: user_column, ITEM: item_column, ORDER: positions, SPLIT: codes},
        schema={USER: pl.String, ITEM: pl.String, ORDER: pl.Int64, SPLIT: pl.UInt8},
    ).with_columns(pl.lit(0, dtype=pl.UInt32).alias(LINE))


def _read_text(path: Path, items: _Index, options: ReadOptions) -> pl.DataFrame:
    """The items' texts, as given."""
    reading = lines(path, options.problems, options.progress)
    number, line = next(reading, (1, ""))
    where = f"{path}:{number}"
    header = names(line, where)
    refuse_repeated(header, where)
    at_id = find_column(header, ("item_id",), "item", where)
    at_text = find_column(header, ("text",), "text", where)
    texts: dict[str, tuple[str, int]] = {}
    for number, line in reading:
        fields = line.split("\t")
        if len(fields) != len(header):
            options.problems.row(path, number, "wrong number of fields", f"{len(fields)}, the header has {len(header)}")
        else:
            texts.setdefault(fields[at_id], (fields[at_text], number))
    for raw, number in zip(items.raw, items.lines, strict=True):
        if raw not in texts:
            options.problems.row(items.file, number, f"an item without metadata in {path.name}", repr(raw))
    found = [(raw, texts[raw][1], " ".join(texts[raw][0].split())) for raw in items.raw if raw in texts]
    return pl.DataFrame(found, schema={RAW: pl.String, LINE: pl.UInt32, TEXT: pl.String}, orient="row")


FORMAT = UniSRec()
