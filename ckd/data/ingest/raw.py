"""What an ingest format gives: a source's interactions and items under their raw ids, before any filtering."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from ckd.data.ingest.lines import Report
from ckd.data.ingest.problems import Problems
from ckd.errors import DataError


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source.

    Attributes:
        scratch: a folder for intermediate files, which must outlive the lazy frames.
        problems: receives malformed rows.
        items: the item file, where it is not beside the interactions.
        progress: receives the bytes read.
    """

    scratch: Path
    problems: Problems
    items: Path | None = None
    progress: Report | None = None


@dataclass(frozen=True)
class Numbering:
    """Users and items in the order of the numbers that the source gives them.

    Attributes:
        users: raw user ids.
        items: raw item ids; all of them belong to the domain, interacted with or not.
    """

    users: pl.Series
    items: pl.Series


@dataclass(frozen=True)
class RawDomain:
    """A source as read.

    Attributes:
        file: the file of the interactions, for messages about a line.
        interactions: lazy frame of `user` and `item` (raw ids, strings), `order` (integer or float; ties keep file
            order), `#line` (UInt32, number of the row in
            `file`), and `split` (UInt8) where the source has one.
        items_file: the file of the items.
        items: lazy frame of `raw_id`, `#line`, optional `text`, optional `image`, and the attributes as strings; None
            where the source has no item file. A raw id may occur again; the first row counts.
        numbering: numbers that the source gives, None where ids are to be numbered in sorted order.
        also: files beside these two that were read.
    """

    file: Path
    interactions: pl.LazyFrame
    items_file: Path | None = None
    items: pl.LazyFrame | None = None
    numbering: Numbering | None = None
    also: tuple[Path, ...] = ()

    @property
    def has_split(self) -> bool:
        """Whether the source gives a split of its own, to be kept as given."""
        return self.numbering is not None


class IngestFormat(Protocol):
    """A format that a domain can be prepared from: one file in `ckd.data.ingest`, which names its instance FORMAT."""

    #: Interactions that a user and an item must have unless configured: 5 for raw logs, 1 for what is processed.
    k_core: int

    def detect(self, source: Path) -> bool:
        """Whether the file or folder `source` looks like this format, from names and first lines only."""
        ...

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        """Read `source`.

        Raises:
            DataError: a file is missing, empty or lacks a column, or a row is malformed and may not be skipped.
        """
        ...


def the_file(source: Path, suffixes: Iterable[str], what: str) -> Path:
    """`source` itself where it is a file, else the only file in it whose name ends with one of `suffixes`.

    Raises:
        DataError: no such file, or several.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if source.is_file():
        return source
    found = files_with(source, suffixes)
    if not found:
        raise DataError(f"{source}: no {what} here (a file that ends with {' or '.join(suffixes)}).")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{source}: {len(found)} files fit as {what} ({names}). Give the path of one of them.")
    return found[0]


def files_with(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files directly in `folder` whose names end with one of `suffixes`, sorted; none where it is no folder.

    Hidden ones are none, such as those that macOS puts beside others.
    """
    if not folder.is_dir():
        return []
    ends = tuple(suffixes)
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(ends) and not path.name.startswith(".") and path.is_file()
    )
