"""Tables with named columns: which column is what, and that the fast way of reading judges rows as the careful one."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckd.config import PrepareConfig
from ckd.data.domain import Domain
from ckd.data.ingest import FORMATS, delimited, parquet
from ckd.data.ingest.problems import Problems
from ckd.data.ingest.raw import ReadOptions
from ckd.errors import DataError
from ckd.pipelines.prepare import prepare

ALL = PrepareConfig(k_core_user=1, k_core_item=1)

FIELD = st.text(st.sampled_from('ab"\r\t .\u2028'), max_size=3)
TIME = st.sampled_from(["1", "-2", "2.5", "", "nan", "9" * 20, "1e3", "noon", "0\r"])
ROWS = st.lists(st.tuples(FIELD, FIELD, TIME), min_size=1, max_size=4)


def run(tmp_path: Path, events: str, items: str | None = None) -> Domain:
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    (folder / "events.csv").write_text(events)
    if items is not None:
        (folder / "items.csv").write_text(items)
    return prepare(tmp_path / "work", folder, name="toy", format="csv", config=ALL, replace=True).domain


@pytest.mark.parametrize(("format", "name", "between"), [("csv", "x.csv", ","), ("recbole", "x.inter", "\t")])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_rows_are_judged_alike_on_the_fast_and_on_the_careful_path(
    format: str, name: str, between: str, rows: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    kinds = (":token", ":token", ":float") if format == "recbole" else ("", "", "")
    header = between.join(
        f"{name}{kind}" for name, kind in zip(("user_id", "item_id", "timestamp"), kinds, strict=True)
    )
    path = tmp_path / name
    path.write_bytes("\n".join([header, *(between.join(row) for row in rows), ""]).encode())

    def read() -> tuple[Any, ...]:
        problems = Problems("skip")
        found = FORMATS.get(format).read(path, ReadOptions(tmp_path / "scratch", problems)).interactions.collect()
        return found.rows(), found.schema, problems.malformed

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_fast", lambda *_: None)
        assert read() == fast


def test_an_items_family_comes_before_the_item_itself(tmp_path: Path) -> None:
    domain = run(tmp_path, "user_id,asin,parent_asin,timestamp\nann,i1,f1,1\nann,i2,f1,2\nann,i3,f2,3\n")
    assert domain.item_table["raw_id"].to_list() == ["f1", "f2"]


def test_days_without_hyphens_are_numbers(tmp_path: Path) -> None:
    """As all numbers are: that they read as dates too is chance, and the next may read as none."""
    domain = run(tmp_path, "user,item,time\nann,i1,20200101\nann,i2,20190101\nann,i3,99999999\n")
    assert domain.items.tolist() == [2, 1, 3]


def test_two_names_of_one_attribute_are_two_attributes(tmp_path: Path) -> None:
    items = "item,category,categories,name\ni1,Home,Home Garden,Hose\n"
    domain = run(tmp_path, "user,item,time\nann,i1,1\n", items)
    assert domain.attributes == ["title", "category", "categories"]
    assert domain.item_table.select("title", "category", "categories").row(0) == ("Hose", "Home", "Home Garden")


@pytest.mark.parametrize(("header", "name"), [("item,name,item_title", "item_title"), ("item,,title", "")])
def test_a_column_that_could_be_no_attribute_is_refused(header: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"items\.csv:1: an attribute cannot be called '{name}' here; rename"):
        run(tmp_path, "user,item,time\nann,i1,1\n", f"{header}\ni1,a,b\n")


def test_other_events_beside_a_file_are_not_its_items(tmp_path: Path) -> None:
    for name in ("events.csv", "more.csv"):
        (tmp_path / name).write_text("user,item,time,title\nann,i1,1,x\n")
    found = FORMATS.get("csv").read(tmp_path / "events.csv", ReadOptions(tmp_path / "scratch", Problems()))
    assert found.items_file is None


def test_a_table_of_raw_ids_beside_the_events_is_their_items(tmp_path: Path) -> None:
    domain = run(tmp_path, "user,item,time\nann,i1,1\n", "raw_id,title,image\ni1,Hose,s3://bucket/1.png\n")
    assert domain.item_table.select("title", "image").row(0) == ("Hose", "s3://bucket/1.png")


def test_times_of_recbole_are_numbers_and_no_dates(tmp_path: Path) -> None:
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\nann\ti1\t2020-01-01\n")
    with pytest.raises(DataError, match=r"x\.inter:2: the time is no number: '2020-01-01'"):
        FORMATS.get("recbole").read(path, ReadOptions(tmp_path / "scratch", Problems()))


def test_a_zipped_table_has_the_separator_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv.gz"
    path.write_bytes(gzip.compress(b"user\titem\ttime\nann\ti,1\t1\n"))
    found = FORMATS.get("csv").read(path, ReadOptions(tmp_path / "scratch", Problems()))
    assert found.interactions.select("user", "item").collect().rows() == [("ann", "i,1")]


@pytest.mark.parametrize(
    ("events", "items"),
    [
        ("user, item ,time", "item , title"),
        ('"user","item","time"', '"item","title"'),
        ("user,item,time", "item,title"),
    ],
)
def test_names_of_columns_may_be_quoted_or_stand_apart(events: str, items: str, tmp_path: Path) -> None:
    domain = run(tmp_path, f"{events}\nann,i1,1\n", f"{items}\ni1,Hose\n")
    assert domain.item_table["title"].to_list() == ["Hose"]


@pytest.mark.parametrize("rows_in_a_group", [1, 3, 50])
def test_rows_of_parquet_are_numbered_through_all_batches(
    rows_in_a_group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2)
    path = tmp_path / "events.parquet"
    table = pl.DataFrame({"user": ["ann"] * 7, "item": [f"i{n}" for n in range(1, 8)], "time": range(7)})
    table.write_parquet(path, row_group_size=rows_in_a_group)
    done: list[tuple[int, int | None]] = []
    options = ReadOptions(tmp_path / "scratch", Problems(), progress=lambda *each: done.append(each[:2]))
    rows = FORMATS.get("parquet").read(path, options).interactions.select("item", "#line").collect().rows()
    assert rows == [(f"i{n}", n) for n in range(1, 8)]
    assert done[-1] == (7, 7)
    assert done == sorted(set(done))


def test_a_page_of_parquet_that_belies_its_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    table = pa.table({"user": ["ann"], "item": ["i1"], "time": [1]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **plain)
    whole = path.read_bytes()
    assert whole.count(b"ann") == 1
    path.write_bytes(whole.replace(b"ann", b"bob"))
    with pytest.raises(DataError, match=r"events\.parquet: damaged near row 1 "):
        FORMATS.get("parquet").read(path, ReadOptions(tmp_path / "scratch", Problems()))
