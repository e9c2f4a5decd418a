"""What a reader gives before anything is numbered or filtered: rows with their order and the lines they stand on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ckd.data.ingest import FORMATS, find_format
from ckd.data.ingest.problems import Problems
from ckd.data.ingest.raw import RawDomain, ReadOptions
from ckd.errors import DataError


def read(format: str, source: Path, tmp_path: Path) -> RawDomain:
    found: RawDomain = FORMATS.get(format).read(source, ReadOptions(tmp_path / "scratch", Problems()))
    return found


def lines_of(path: Path) -> list[str]:
    """The file's lines; of Parquet the rows, which stand for them."""
    if path.suffix == ".parquet":
        return [str(row) for row in pl.read_parquet(path).rows()]
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n")


def test_rows_name_the_lines_they_stand_on(written: Any, toy: Any, tmp_path: Path) -> None:
    raw = read(written.format, written.source, tmp_path)
    assert raw.items is not None
    assert raw.items_file is not None
    described = lines_of(raw.items_file)
    found = raw.items.select("raw_id", "#line").collect().rows()
    assert sorted(name for name, _ in found) == sorted(toy.items)
    for name, line in found:
        if written.format == "csv":
            # Every record begins with a quoted title, which may go on to the next line.
            assert described[line - 1].startswith('"')
            assert name in "".join(described[line - 1 : line + 1])
        else:
            assert name in described[line - 1]
    # A benchmark's sequences are put together from many lines.
    if written.format != "unisrec":
        events = lines_of(raw.file)
        for user, item, line in raw.interactions.select("user", "item", "#line").collect().rows():
            assert user in events[line - 1]
            assert item in events[line - 1]


def test_the_order_of_rows_is_their_time_or_their_place(written: Any, toy: Any, tmp_path: Path) -> None:
    rows = read(written.format, written.source, tmp_path).interactions.select("user", "item", "order").collect().rows()
    if written.format in ("sequences", "unisrec"):
        expected = [(user, item, at) for user, items in toy.sequences.items() for at, item in enumerate(items)]
    else:
        expected = toy.interactions
    assert sorted(rows) == sorted(expected)


def test_words_of_an_item_are_cleaned_as_attributes_are(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    (folder / "item_text.txt").write_text("i1 Garden  &amp; <b>Home</b>.\ni2\n")
    items = read("sequences", folder, tmp_path).items
    assert items is not None
    assert items.select("raw_id", "text").collect().rows() == [("i1", "Garden & Home"), ("i2", "")]


def test_sequences_are_known_by_the_name_of_their_file(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    notes = (folder / "user_sequence.txt").rename(folder / "notes.txt")
    for source in (folder, notes):
        with pytest.raises(DataError, match="no ingest format fits"):
            find_format(source)


@pytest.mark.parametrize("name", ["Toy", "Toy_5", "Toy_0", "reviews_Toy", "reviews_Toy_5"])
def test_reviews_go_with_the_metadata_of_their_category(name: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["amazon-2018"](tmp_path / "source")
    (folder / "meta_Other.json").write_text('{"asin": "i1"}\n')
    reviews = (folder / "Toy_5.json").rename(folder / f"{name}.json")
    assert read("amazon", reviews, tmp_path).items_file == folder / "meta_Toy.json"


def test_a_folder_with_a_files_name_is_no_candidate(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["csv"](tmp_path / "source")
    (folder / "old.csv").mkdir()
    assert read("csv", folder, tmp_path).items_file == folder / "items.csv"
