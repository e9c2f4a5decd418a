"""What is wrong in a source is one line with file and line number, or counted where skipping is asked for."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ckd.config import PrepareConfig
from ckd.data.ingest import amazon, lines
from ckd.data.ingest.problems import Problems, one_line
from ckd.data.ingest.raw import ReadOptions
from ckd.errors import CkdError, DataError
from ckd.pipelines.prepare import Prepared, prepare

ALL: dict[str, Any] = {"k_core_user": 1, "k_core_item": 1}


def run(work: Path, source: Path, **config: Any) -> Prepared:
    return prepare(work, source, name="toy", config=PrepareConfig(**{**ALL, **config}))


def replace_line(number: int, text: str | bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        found = data.split(b"\n")
        found[number - 1] = text.encode() if isinstance(text, str) else text
        return b"\n".join(found)

    return change


#: Source, file, change, the message after `FILE:`, and how many interactions are left when the row is skipped.
BAD_ROWS: list[tuple[str, str, Callable[[bytes], bytes], str, int]] = [
    ("recbole", "Toy.inter", replace_line(3, "bob\t4.0\ti1"), "3: wrong number of fields: 3, the header has 4", 9),
    ("recbole", "Toy.inter", replace_line(3, "bob\t4.0\ti1\tnoon"), "3: the time is no number: 'noon'", 9),
    ("recbole", "Toy.inter", replace_line(3, "bob\t4.0\ti1\tnan"), "3: the time is no number: 'nan'", 9),
    ("recbole", "Toy.inter", replace_line(3, "\t4.0\ti1\t5"), "3: no user id", 9),
    ("recbole", "Toy.inter", replace_line(11, "cid\t4.0\t\t5"), "11: no item id", 9),
    ("recbole", "Toy.inter", replace_line(4, b"ann\t4.0\t\xff\t5"), "4: not UTF-8: byte 0xff at column 9", 9),
    ("recbole", "Toy.inter", replace_line(4, "ann\t4.0\ti9\t5"), "4: an item without metadata in Toy.item: 'i9'", 9),
    ("recbole", "Toy.item", replace_line(3, "i2\tx"), "3: wrong number of fields: 2, the header has 5", 7),
    ("recbole", "Toy.item", replace_line(3, "\tx\tx\tx\tx"), "3: no item id", 7),
    ("sequences", "user_sequence.txt", replace_line(2, "bob"), "2: a user without items: 'bob'", 7),
    ("sequences", "user_sequence.txt", replace_line(2, "ann i1"), "2: a user on two lines: 'ann', first on line 1", 7),
    ("sequences", "user_sequence.txt", replace_line(3, b"c\xe9d i1 i2"), "3: not UTF-8: byte 0xe9 at column 2", 7),
    ("sequences", "user_sequence.txt", replace_line(1, "ann i9 i1 i9"), "1: an item without metadata in", 7),
    ("csv", "events.csv", replace_line(2, "10,ann"), "2: wrong number of fields: 2, the header has 3", 9),
    ("csv", "events.csv", replace_line(2, "10,ann,i3,x"), "2: wrong number of fields: 4, the header has 3", 9),
    ("csv", "events.csv", replace_line(2, '10,"ann,i3'), "2: not a row of CSV: unexpected end of data", 9),
    ("csv", "events.csv", replace_line(3, "today,ann,i3"), "3: the time is no number: 'today'", 9),
    ("csv", "events.csv", replace_line(3, "9" * 5000 + ",ann,i3"), "3: the time is no number: '999", 9),
    ("csv", "items.csv", replace_line(9, ",,,"), "9: no item id", 10),
    ("amazon-2018", "Toy_5.json", replace_line(1, '{"reviewerID": "ann"'), "1: not a JSON object: ", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, "[1, 2]"), r"5: not a JSON object: [1, 2]", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, '{"asin": "i1", "unixReviewTime": 1}'), "5: no reviewerID", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, '{"reviewerID": "a", "asin": ["i1"], "unixReviewTime": 1}'),
     "5: no asin", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, '{"reviewerID": "a\\ud83d", "asin": "i1", "unixReviewTime": 1}'),
     "5: no reviewerID", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, '{"reviewerID": "a", "asin": "i1", "unixReviewTime": true}'),
     "5: unixReviewTime is no number: True", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, '{"reviewerID": "a", "asin": "i1"}'),
     "5: unixReviewTime is no number: None", 9),
    ("amazon-2018", "Toy_5.json", replace_line(5, b'{"reviewerID": "\xc3("}'), "5: not UTF-8: byte 0xc3 at", 9),
    ("amazon-2023", "Toy_5.jsonl", replace_line(10, '{"user_id": "a", "asin": "i1", "timestamp": 1}'),
     "10: no parent_asin", 9),
    ("amazon-2018", "meta_Toy.json", replace_line(2, "nothing"), "2: not a JSON object: nothing", 7),
    ("amazon-2018", "meta_Toy.json", replace_line(2, '{"title": "x"}'),
     "2: no item id: none of parent_asin, asin among title", 7),
    ("unisrec", "Toy.train.inter", replace_line(2, "0\t2\t9"), "2: an item that is not in Toy.item2index: '9'", 10),
    ("unisrec", "Toy.train.inter", replace_line(2, "7\t2\t1"), "2: a user that is not in Toy.user2index: '7'", 10),
    ("unisrec", "Toy.train.inter", replace_line(2, "0\t\t1"), "2: an instance without history: user '0'", 10),
    ("unisrec", "Toy.train.inter", replace_line(2, "0\t2"), "2: wrong number of fields: 2, the header has 3", 10),
    ("unisrec", "Toy.user2index", replace_line(4, "eve\t" + "9" * 5000), "4: not a raw id, tab, number: 'eve", 10),
    ("unisrec", "Toy.text", replace_line(3, "i2"), "3: wrong number of fields: 1, the header has 2", 10),
    ("unisrec", "Toy.text", replace_line(3, "i7\tx"), "2: an item without metadata in Toy.text: 'i2'", 10),
]  # fmt: skip


@pytest.mark.parametrize(("source", "file", "change", "message", "left"), BAD_ROWS)
def test_a_malformed_row_is_refused_by_file_and_line_or_counted(
    source: str, file: str, change: Callable[[bytes], bytes], message: str, left: int, toy: Any, tmp_path: Path
) -> None:
    folder = toy.write[source](tmp_path / "source")
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    where = path.with_name("Toy.item2index") if "metadata in Toy.text" in message else path
    with pytest.raises(DataError, match=re.escape(f"{where}:{message}")) as caught:
        run(tmp_path / "work", folder)
    assert "\n" not in str(caught.value)
    assert "prepare.on_error=skip" in str(caught.value)
    # Nothing half-written stays behind.
    assert list((tmp_path / "work" / "domains").iterdir()) == []
    prepared = run(tmp_path / "work", folder, on_error="skip")
    assert prepared.statistics["interactions"] == left
    first = prepared.malformed[0]
    assert f"{first.file}:{first.first}: {first.example}".startswith(f"{where}:{message}")
    assert first.rows >= 1
    assert prepared.domain.notes["malformed"]


def test_malformed_rows_are_counted_by_kind(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["recbole"](tmp_path / "source")
    path = folder / "Toy.inter"
    for line in (2, 5, 9):
        path.write_bytes(replace_line(line, "x")(path.read_bytes()))
    path.write_bytes(replace_line(3, "bob\t4.0\ti1\tnoon")(path.read_bytes()))
    prepared = run(tmp_path, folder, on_error="skip")
    assert [(each.kind, each.rows, each.first) for each in prepared.malformed] == [
        ("wrong number of fields", 3, 2),
        ("the time is no number", 1, 3),
    ]
    assert prepared.read == 6


def test_lines_are_counted_across_blocks(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 30)
    for source, file, change, message, _ in BAD_ROWS:
        if source == "recbole" and file == "Toy.inter":
            folder = toy.write[source](tmp_path / "source")
            path = folder / file
            path.write_bytes(change(path.read_bytes()))
            with pytest.raises(DataError, match=re.escape(f"{path}:{message}")):
                run(tmp_path / "work", folder)


@pytest.mark.parametrize(
    ("source", "file", "message"),
    [
        ("recbole", "Toy.inter", "Toy.inter"),
        ("recbole", "Toy.item", "Toy.item"),
        ("unisrec", "Toy.train.inter", "Toy.train.inter"),
        ("unisrec", "Toy.test.inter", "Toy.test.inter"),
        ("unisrec", "Toy.text", "Toy.text"),
        ("unisrec", "Toy.item2index", "Toy.item2index"),
        ("sequences", "user_sequence.txt", "user_sequence.txt"),
        ("sequences", "item_text.txt", "item_text.txt"),
        ("csv", "events.csv", "events.csv"),
        ("amazon-2018", "Toy_5.json", "Toy_5.json"),
    ],
)
def test_an_empty_file_is_refused_whatever_is_skipped(
    source: str, file: str, message: str, toy: Any, tmp_path: Path
) -> None:
    folder = toy.write[source](tmp_path / "source")
    (folder / file).write_bytes(b"")
    format = source.split("-")[0]
    given = folder / file if source == "amazon-2018" else folder
    for on_error in ("fail", "skip"):
        config = PrepareConfig(**ALL, on_error=on_error)
        with pytest.raises(DataError, match=rf"{message}: the file is empty\.$"):
            prepare(tmp_path / "work", given, name="toy", format=format, config=config)
    (folder / file).write_bytes(b"\n \n\n")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        prepare(tmp_path / "work", given, name="toy", format=format, config=PrepareConfig(**ALL))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["Toy.valid.inter", "Toy.test.inter", "Toy.text", "Toy.item2index", "Toy.user2index"])
def test_a_missing_file_of_a_benchmark_is_named(file: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    (folder / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: no such file"):
        run(tmp_path, folder)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("recbole", r"no interactions here \(a file that ends with .inter\)"),
        ("unisrec", r"expected one NAME.train.inter, found none"),
        ("sequences", r"no user sequences here"),
        ("csv", r"no interactions here \(a file that ends with .csv or .tsv"),
        ("parquet", r"no interactions here"),
        ("amazon", r"0 files of reviews here, expected one"),
    ],
)
def test_a_folder_without_the_format_is_one_line(format: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, tmp_path / "source", name="toy", format=format)
    with pytest.raises(DataError, match="no such file or folder"):
        prepare(tmp_path, tmp_path / "absent", name="toy", format=format)


@pytest.mark.parametrize(
    ("source", "file", "header", "message"),
    [
        ("recbole", "Toy.inter", "user_id:token\trating:float\tthing:token\ttimestamp:float",
         r"Toy\.inter:1: no column for the item \(item, item_id, .*\); the columns are user_id, rating, thing, time"),
        ("recbole", "Toy.inter", "user_id:token\trating:float\titem_id:token\tx:float", r"Toy\.inter:1: no column for "
         r"the time"),
        ("recbole", "Toy.inter", "user_id\trating:float\titem_id:token\tx:float", r"Toy\.inter:1: column 'user_id' has "
         r"no type"),
        ("recbole", "Toy.inter", "user_id:token\titem_id:float\titem_id:token\ttimestamp:float",
         r"Toy\.inter:1: two columns are called 'item_id'"),
        ("recbole", "Toy.item", "id:token\tx:token\ttitle:token\tvector:float_seq\tbrand:token",
         r"Toy\.item:1: no column for the item"),
        ("unisrec", "Toy.valid.inter", "user_id:token\thistory:token_seq\titem_id:token",
         r"Toy\.valid\.inter:1: no column for the history \(item_id_list\)"),
        ("unisrec", "Toy.text", "item_id:token\twords:token_seq", r"Toy\.text:1: no column for the text"),
        ("csv", "events.csv", "time,who,item", r"events\.csv:1: no column for the user"),
        ("csv", "events.csv", 'time,"who,item', r"events\.csv:1: the header is not a row of CSV"),
        ("csv", "items.csv", "title,raw_id,item,brand", r"items\.csv:1: an attribute cannot be called 'raw_id' here"),
        ("amazon-2018", "Toy_5.json", '{"reviewerID": "a", "unixReviewTime": 1}',
         r"Toy_5\.json:1: no field for the item \(parent_asin or asin\); the fields are reviewerID, unixReviewTime"),
    ],
)  # fmt: skip
def test_a_missing_column_is_named_with_what_is_there(
    source: str, file: str, header: str, message: str, toy: Any, tmp_path: Path
) -> None:
    folder = toy.write[source](tmp_path / "source")
    path = folder / file
    path.write_bytes(replace_line(1, header)(path.read_bytes()))
    given = path if file in ("Toy_5.json", "events.csv") else folder
    for on_error in ("fail", "skip"):
        with pytest.raises(DataError, match=message) as caught:
            run(tmp_path / "work", given, on_error=on_error)
        assert "\n" not in str(caught.value)


def test_metadata_that_is_none_is_refused(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["amazon-2018"](tmp_path / "source")
    (tmp_path / "other.json").write_text('{"title": "x"}\n')
    with pytest.raises(DataError, match=r"other\.json: no line describes an item"):
        run(tmp_path, folder, on_error="skip", items=tmp_path / "other.json")


def test_a_truncated_gzip_is_refused_or_read_as_far_as_it_goes(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PIECE_BYTES", 32)
    path = tmp_path / "events.csv.gz"
    text = "user,item,time\n" + "".join(f"u{n % 7},i{n * 37 % 11},{n * 7919 % 1000}\n" for n in range(400))
    whole = gzip.compress(text.encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"events\.csv\.gz:\d+: the gzip stream ends here, before its end") as caught:
        run(tmp_path, path)
    assert "Fetch the file again" in str(caught.value)
    prepared = run(tmp_path, path, on_error="skip")
    assert [each.kind for each in prepared.malformed] == [
        "the gzip stream ends here, before its end (the file is truncated)"
    ]
    # What was read is a beginning of the file, whole rows only.
    assert 100 < prepared.read < 400
    assert prepared.malformed[0].first == prepared.read + 2


def test_a_damaged_gzip_is_refused_or_read_as_far_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PIECE_BYTES", 32)
    path = tmp_path / "events.csv.gz"
    text = "user,item,time\n" + "".join(f"u{n % 7},i{n * 37 % 11},{n * 7919 % 1000}\n" for n in range(400))
    whole = bytearray(gzip.compress(text.encode()))
    # The last eight bytes are the checksum and the length.
    whole[-6] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"events\.csv\.gz:\d+: the gzip stream is damaged from here on"):
        run(tmp_path, path)
    assert run(tmp_path, path, on_error="skip").read == 400


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    monkeypatch.setattr(lines, "LONGEST_LINE", 200)
    (tmp_path / "events.csv").write_text("user,item,time\n" + "x" * 1000)
    with pytest.raises(DataError, match=r"events\.csv:2: a line beyond"):
        run(tmp_path, tmp_path / "events.csv")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pl.DataFrame({"user": ["a"], "time": [1]}), r"events\.parquet: no column for the item"),
        (
            pl.DataFrame({"user": ["a"], "item": [1.0], "time": [1]}),
            r"events\.parquet: column 'item' is Float64; ids must be strings or integers",
        ),
        (
            pl.DataFrame({"user": ["a"], "item": ["b"], "time": ["c"]}),
            r"events\.parquet: column 'time' is String; a time must be a number or a datetime",
        ),
    ],
)
def test_parquet_of_other_columns_is_refused(table: pl.DataFrame, message: str, tmp_path: Path) -> None:
    table.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=message):
        run(tmp_path, tmp_path / "events.parquet")


def test_a_quote_that_is_never_closed_is_reported_where_it_opens(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["csv"](tmp_path / "source")
    path = folder / "items.csv"
    before = path.read_text().rstrip("\n").split("\n")
    path.write_text("\n".join([*before, '"Sofa,i7,Home,Acme', "Table,i8,Home,Acme", "Bed,i9,Home,Acme", ""]))
    first = len(before) + 1
    message = f"not a row of CSV: unexpected end of data, a quote is open until line {first + 2}"
    with pytest.raises(DataError, match=re.escape(f"{path}:{first}: {message}")):
        run(tmp_path / "work", folder)
    (found,) = run(tmp_path / "work", folder, on_error="skip").malformed
    assert (found.first, found.rows, found.example) == (first, 3, message)


@pytest.mark.parametrize("row", [
    '{"reviewerID": true, "asin": "i1", "unixReviewTime": 1}',
    '{"reviewerID": 1.0, "asin": "i1", "unixReviewTime": 1}',
    '{"reviewerID": -0, "asin": 7, "unixReviewTime": 1}',
    '{"reviewerID": "a", "asin": 123456789012345678901234567890, "unixReviewTime": 1}',
    '{"reviewerID": "a", "reviewerID": "b", "asin": "i1", "unixReviewTime": 1}',
    '{"reviewerID": "a", "asin": "i1", "asin": {}, "unixReviewTime": 1}',
    '{"reviewerID": "a", "asin": "i1", "unixReviewTime": 1.5}',
    '{"reviewerID": "a", "asin": "i1", "unixReviewTime": 1, "unixReviewTime": 2}',
    '{"reviewerID": "a", "asin": "i1", "unixReviewTime": false}',
    '{"reviewerID": "a [b]", "asin": "{i}", "unixReviewTime": 12}',
])  # fmt: skip
def test_a_review_is_judged_alike_whatever_stands_beside_it(row: str, tmp_path: Path) -> None:
    def read(*rows: str) -> list[tuple[Any, ...]]:
        path = tmp_path / "Toy_5.json"
        path.write_text("\n".join(rows) + "\n")
        scratch = tmp_path / f"scratch-{len(rows)}"
        scratch.mkdir()
        frame = amazon.FORMAT.read(path, ReadOptions(scratch, Problems("skip"), None, None)).interactions.collect()
        return [found for found in frame.select("user", "item", "order").rows() if found[0] != "plain"]

    plain = '{"reviewerID": "plain", "asin": "i1", "unixReviewTime": 3}'
    # A line of Python sends its block to the reader that judges row by row.
    assert read(plain, row) == read(plain, row, "{'reviewerID': 'plain', 'asin': 'i1', 'unixReviewTime': 3}")


def test_times_beyond_64_bits_in_parquet_are_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    times = pl.Series("time", [1, 2**63 + 1], dtype=pl.UInt64)
    pl.DataFrame({"user": ["a", "a"], "item": ["i", "j"], "time": times}).write_parquet(path)
    with pytest.raises(DataError, match=r"events\.parquet:2: the time is no number"):
        run(tmp_path / "work", path)


def test_gaps_in_parquet_are_named_by_row_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    table = {"user": ["a", None, "", "a", "a"], "item": ["i", "i", "i", None, "i"], "time": [1.0, 1.0, 1.0, 1.0, None]}
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(DataError, match=r"events\.parquet:2: no user id"):
        run(tmp_path, path)
    prepared = run(tmp_path, path, on_error="skip")
    assert [(each.kind, each.rows, each.first) for each in prepared.malformed] == [
        ("no user id", 2, 2),
        ("no item id", 1, 4),
        ("the time is no number", 1, 5),
    ]
    assert prepared.read == 1
    pl.DataFrame(table).with_columns(time=pl.lit(float("nan"))).write_parquet(path)
    with pytest.raises(DataError, match=r"no interactions, 5 malformed rows were left out"):
        run(tmp_path, path, on_error="skip")


def test_a_damaged_parquet_file_is_one_line(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["parquet"](tmp_path / "source")
    path = folder / "events.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"events\.parquet: not a Parquet file") as caught:
        run(tmp_path, path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"events\.parquet: not a Parquet file"):
        run(tmp_path, path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("i1\t0\ni2\t0\n", r"Toy\.item2index:2: a number given twice: 0, first on line 1"),
        ("i1\t0\ni1\t1\n", r"Toy\.item2index:2: an id given twice: 'i1', first on line 1"),
        ("i1\t0\ni2\n", r"Toy\.item2index:2: not a raw id, tab, number: 'i2'"),
        ("i1\t0\ni2\tx\n", r"Toy\.item2index:2: not a raw id, tab, number"),
        ("i1\t0\ni2\t-1\n", r"Toy\.item2index:2: not a raw id, tab, number"),
    ],
)
def test_a_broken_index_is_refused(index: str, message: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    (folder / "Toy.item2index").write_text(index)
    with pytest.raises(DataError, match=message):
        run(tmp_path, folder)


def test_a_benchmark_of_no_one_sequence_is_refused_even_when_skipping(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    path = folder / "Toy.test.inter"
    path.write_bytes(replace_line(2, "0\t1 1 1\t2")(path.read_bytes()))
    for on_error in ("fail", "skip"):
        with pytest.raises(DataError, match=r"Toy\.test\.inter:2: the history of user 'ann' does not continue"):
            run(tmp_path, folder, on_error=on_error)


def test_a_file_that_may_not_be_opened_is_one_line(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    opened = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "user_sequence.txt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CkdError, match=r"user_sequence\.txt: permission denied"):
        run(tmp_path, folder)


def test_messages_are_one_printable_line() -> None:
    assert one_line("a\nb\x00c\u2028d") == "a b c d"
    assert one_line("x" * 500, most=10) == one_line("x" * 11, most=10) == "x" * 9 + "…"
    assert one_line("x" * 10, most=10) == "x" * 10


@pytest.mark.parametrize(
    ("source", "name", "kept"),
    [
        ("csv", "items.csv", 0),
        ("parquet", "items.parquet", 0),
        ("parquet", "items.parquet", 0.9),
        ("amazon-2018", "meta_Toy.json", 0),
    ],
)
def test_items_that_cannot_be_read_are_not_overlooked(
    toy: Any, tmp_path: Path, source: str, name: str, kept: float
) -> None:
    folder = toy.write[source](tmp_path / source)
    whole = folder / name
    elsewhere = tmp_path / "elsewhere" / name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(whole.read_bytes())
    whole.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    with pytest.raises(DataError, match=rf"{re.escape(str(whole))}: .*prepare\.items=PATH"):
        run(tmp_path, folder)
    assert not (tmp_path / "domains" / "toy").exists()
    assert run(tmp_path, folder, items=elsewhere).read == 10
    # What macOS puts beside a file is none.
    whole.rename(folder / f"._{name}")
    assert run(tmp_path / "other", folder, **({"require_text": False} if source == "parquet" else {})).read == 10
