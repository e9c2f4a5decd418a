"""A line per user: `USER ITEM ITEM …` in time order (`user_sequence.txt`), and per item its words (`item_text.txt`)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ckd.data.ingest.lines import lines
from ckd.data.ingest.raw import RawDomain, ReadOptions, the_file
from ckd.data.ingest.spool import TEXT, interaction_spool, item_spool
from ckd.data.ingest.text import clean

SEQUENCES = "user_sequence.txt"
ITEMS = "item_text.txt"


class Sequences:
    """Fields are separated by white space; an item's words are its text."""

    k_core = 1

    def detect(self, source: Path) -> bool:
        return source.name == SEQUENCES if source.is_file() else (source / SEQUENCES).is_file()

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        path = the_file(source, [SEQUENCES], "user sequences")
        interactions = _read_sequences(path, options)
        items = options.items or path.parent / ITEMS
        if options.items is None and not items.exists():
            return RawDomain(path, interactions)
        return RawDomain(path, interactions, items, _read_items(items, options))


def _read_sequences(path: Path, options: ReadOptions) -> pl.LazyFrame:
    spool = interaction_spool(options.scratch)
    line_of: dict[str, int] = {}
    for number, line in lines(path, options.problems, options.progress):
        user, *items = line.split()
        if not items:
            options.problems.row(path, number, "a user without items", repr(user))
        elif user in line_of:
            detail = f"{user!r}, first on line {line_of[user]}"
            options.problems.row(path, number, "a user on two lines", detail)
        else:
            line_of[user] = number
            for position, item in enumerate(items):
                spool.add((user, item, position, number))
    return spool.finish()


def _read_items(path: Path, options: ReadOptions) -> pl.LazyFrame:
    spool = item_spool(options.scratch, [TEXT])
    for number, line in lines(path, options.problems, options.progress):
        raw, *words = line.split(maxsplit=1)
        spool.add((raw, number, clean(words[0]) if words else ""))
    return spool.finish()


FORMAT = Sequences()
