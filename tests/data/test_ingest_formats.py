"""Every format gives the same domain, however it is written."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import PrepareConfig
from ckd.data.domain import SPLITS, Domain
from ckd.data.ingest import FORMATS, amazon, delimited, find_format, lines
from ckd.data.ingest.amazon import item_attributes, item_image, parse_object
from ckd.data.ingest.delimited import parse_date
from ckd.data.ingest.spool import parse_time, parse_times
from ckd.data.ingest.text import clean, ordered
from ckd.errors import ConfigError, DataError
from ckd.pipelines.prepare import Prepared, prepare

#: Raw logs are filtered to their 5-core by default, of which the toy domain has none.
ALL = PrepareConfig(k_core_user=1, k_core_item=1)


def run(work: Path, source: Path, config: PrepareConfig = ALL, **options: Any) -> Prepared:
    return prepare(work, source, name="toy", config=config, replace=True, **options)


def sequences_of(domain: Domain) -> dict[str, list[str]]:
    raw = ["", *domain.item_table["raw_id"].to_list()]
    rows = np.split(domain.items, domain.indptr[1:-1])
    return {user: [raw[i] for i in row] for user, row in zip(domain.user_ids.to_list(), rows, strict=True)}


def instances_of(domain: Domain) -> dict[str, set[tuple[str, tuple[int, ...], int]]]:
    users = domain.user_ids.to_list()
    return {
        split: {
            (users[user], tuple(domain.items[start:stop].tolist()), int(target))
            for user, target, start, stop in zip(found.users, found.targets, found.starts, found.stops, strict=True)
        }
        for split in SPLITS
        for found in [domain.instances(split)]
    }


def test_the_format_is_found_by_looking(written: Any) -> None:
    assert find_format(written.source)[0] == written.format


def test_every_format_is_covered(toy: Any) -> None:
    assert {name.split("-")[0] for name in toy.write} == set(FORMATS.names())


def test_sequences_split_and_texts_are_the_same(written: Any, toy: Any, tmp_path: Path) -> None:
    prepared = run(tmp_path / "work", written.source)
    domain = prepared.domain
    assert prepared.format == written.format
    assert prepared.malformed == ()
    assert prepared.read == len(toy.interactions)
    assert sequences_of(domain) == toy.sequences
    assert domain.split.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert domain.item_table["item"].to_list() == [1, 2, 3, 4]
    texts = dict(zip(domain.item_table["raw_id"], domain.item_table["text"], strict=True))
    if "title" in domain.attributes and len(domain.attributes) > 1:
        assert texts == toy.texts
        assert domain.attributes == ["title", "brand", "category"]
        assert domain.item_table["title"][1] == 'Blue Kettle 12"'
        assert domain.item_table["category"].to_list() == ["Garden Hoses", "Kitchen", "", "Home"]
    else:
        assert {raw: text.rstrip(".") for raw, text in texts.items()} == toy.bare
        assert domain.attributes == ["title"]
        assert domain.item_table["title"].to_list() == list(toy.bare.values())
    assert Domain.load(tmp_path / "work" / "domains" / "toy").fingerprint == domain.fingerprint
    assert [path.name for path in (tmp_path / "work" / "domains").iterdir()] == ["toy"]


def test_the_file_itself_is_a_source_too(written: Any, toy: Any, tmp_path: Path) -> None:
    interactions = {
        "recbole": "Toy.inter",
        "unisrec": "Toy.train.inter",
        "sequences": "user_sequence.txt",
        "csv": "events.csv",
        "parquet": "events.parquet",
    }
    found = [path.name for path in written.source.iterdir() if path.name.startswith("Toy_5")]
    path = written.source / (interactions.get(written.format) or found[0])
    assert find_format(path)[0] == written.format
    domain = run(tmp_path / "work", path).domain
    assert sequences_of(domain) == toy.sequences
    assert all(domain.item_table["text"])


def test_small_blocks_and_the_careful_path_change_nothing(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "a", written.source).domain
    monkeypatch.setattr(lines, "BLOCK_BYTES", 40)
    monkeypatch.setattr(lines, "PIECE_BYTES", 7)
    blocks = run(tmp_path / "b", written.source).domain
    for module in (amazon, delimited):
        monkeypatch.setattr(module, "_fast", lambda *_: None)
    careful = run(tmp_path / "c", written.source).domain
    assert blocks.fingerprint == careful.fingerprint == expected.fingerprint


@pytest.mark.parametrize("source", ["recbole", "csv", "amazon-2018", "amazon-2023"])
def test_plain_rows_take_the_fast_path(source: str, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the careful path was taken")

    folder = toy.write[source](tmp_path / "source")
    for module in (amazon, delimited):
        monkeypatch.setattr(module, "_slow", refuse)
    assert run(tmp_path / "work", folder).read == len(toy.interactions)


@pytest.mark.parametrize("source", ["recbole", "csv", "parquet", "amazon-2018"])
def test_ids_do_not_depend_on_the_order_of_rows(source: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write[source](tmp_path / "source")
    expected = run(tmp_path / "a", folder).domain.fingerprint
    # Ann's two interactions at the same time stay in their order, everything else may move.
    order = [n for n in random.Random(3).sample(range(10), 10) if n not in (2, 3)] + [2, 3]
    path = next(p for p in folder.iterdir() if p.name.startswith(("Toy.inter", "events", "Toy_5")))
    if path.suffix == ".parquet":
        table = pl.read_parquet(path)
        table[order].write_parquet(path)
    else:
        header, rows = ([], path.read_text().splitlines())
        if source != "amazon-2018":
            header, rows = rows[:1], rows[1:]
        path.write_text("\n".join([*header, *(rows[n] for n in order)]) + "\n")
    assert run(tmp_path / "b", folder).domain.fingerprint == expected


def test_line_ends_bom_and_blank_lines_change_nothing(toy: Any, tmp_path: Path) -> None:
    for source in ("recbole", "csv", "sequences", "unisrec", "amazon-2018"):
        folder = toy.write[source](tmp_path / source)
        expected = run(tmp_path / "a", folder).domain.fingerprint
        for path in folder.iterdir():
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n").rstrip(b"\r\n"))
        assert run(tmp_path / "b", folder).domain.fingerprint == expected, source


def test_two_formats_in_one_folder_are_ambiguous(toy: Any, tmp_path: Path) -> None:
    toy.write["csv"](tmp_path / "both")
    folder = toy.write["recbole"](tmp_path / "both")
    with pytest.raises(DataError, match=r"fits csv and recbole\. Choose one with --format"):
        find_format(folder)
    assert run(tmp_path / "work", folder, format="csv").format == "csv"


def test_a_folder_of_nothing_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "config.json").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"no ingest format fits.*Known: amazon, csv, parquet, recbole"):
        find_format(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        find_format(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"unknown ingest format 'recbol'\. Did you mean 'recbole'"):
        find_format(tmp_path, "recbol")


def test_several_candidates_are_named(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["recbole"](tmp_path / "recbole")
    (folder / "Other.inter").write_text("x")
    with pytest.raises(DataError, match=r"2 files fit as interactions \(Other.inter, Toy.inter\)"):
        run(tmp_path, folder)
    folder = toy.write["amazon-2018"](tmp_path / "amazon")
    (folder / "meta_A.json").write_text('{"asin": "i1"}\n')
    (folder / "meta_B.json").write_text('{"asin": "i1"}\n')
    # The one that is named after the reviews counts.
    assert run(tmp_path, folder).read == 10
    (folder / "meta_Toy.json").unlink()
    with pytest.raises(DataError, match=r"2 metadata files lie beside it \(meta_A.json, meta_B.json\)"):
        run(tmp_path, folder)
    (folder / "More.json").write_text('{"reviewerID": "a", "asin": "i1", "unixReviewTime": 1}\n')
    with pytest.raises(DataError, match=r"2 files of reviews here \(More.json, Toy_5.json\)"):
        run(tmp_path, folder)
    folder = toy.write["csv"](tmp_path / "csv")
    (folder / "more.csv").write_text("item,title\ni1,x\n")
    with pytest.raises(DataError, match=r"2 item tables lie beside it \(items.csv, more.csv\)"):
        run(tmp_path, folder)
    chosen = PrepareConfig(items=folder / "items.csv")
    assert run(tmp_path, folder, chosen).read == 10


def test_an_item_file_elsewhere_is_used(toy: Any, tmp_path: Path) -> None:
    for source, name in (
        ("recbole", "Toy.item"),
        ("sequences", "item_text.txt"),
        ("csv", "items.csv"),
        ("parquet", "items.parquet"),
        ("amazon-2018", "meta_Toy.json"),
        ("unisrec", "Toy.text"),
    ):
        folder = toy.write[source](tmp_path / source)
        expected = run(tmp_path / "a", folder).domain.fingerprint
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        there = (folder / name).rename(tmp_path / "elsewhere" / name)
        config = ALL.model_copy(update={"items": there})
        assert run(tmp_path / "b", folder, config).domain.fingerprint == expected
        with pytest.raises(DataError, match="no such file"):
            run(tmp_path / "b", folder, ALL.model_copy(update={"items": tmp_path / "absent"}))


def test_without_an_item_file_items_have_no_text(toy: Any, tmp_path: Path) -> None:
    for source, name in (("recbole", "Toy.item"), ("sequences", "item_text.txt"), ("csv", "items.csv")):
        folder = toy.write[source](tmp_path / source)
        (folder / name).unlink()
        domain = run(tmp_path / "a", folder).domain
        assert sequences_of(domain) == toy.sequences
        assert domain.item_table["text"].to_list() == [""] * 4
        assert domain.attributes == []
        with pytest.raises(DataError, match=r"prepare\.require_text needs an item file"):
            run(tmp_path / "a", folder, PrepareConfig(require_text=True))


def test_raw_reviews_are_reduced_to_their_5_core(tmp_path: Path) -> None:
    rows = [
        {"reviewerID": f"u{u}", "asin": f"i{i}", "unixReviewTime": i} for u in range(6) for i in range(5 + (u == 0))
    ]
    (tmp_path / "x.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(tmp_path, tmp_path / "x.json", name="toy")
    assert prepared.read == 31
    assert prepared.statistics["interactions"] == 30
    assert {each.filter: each.interactions for each in prepared.removed}["5-core users, 5-core items"] == 1


def test_dates_are_times(toy: Any, tmp_path: Path) -> None:
    rows = ["user,item,date", *(f"{u},{i},2020-01-{t:02d}" for u, i, t in toy.interactions)]
    (tmp_path / "events.csv").write_text("\n".join(rows))
    assert sequences_of(run(tmp_path, tmp_path / "events.csv").domain) == toy.sequences
    rows[4] = "ann,i4,20"
    (tmp_path / "events.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"events.csv:5: the time is no date: '20'"):
        run(tmp_path, tmp_path / "events.csv")


def test_parquet_takes_datetimes_integers_and_dictionaries(toy: Any, tmp_path: Path) -> None:
    users, items, times = zip(*toy.interactions, strict=True)
    codes = {item: n for n, item in enumerate(sorted(set(items)))}
    table = pl.DataFrame(
        {
            "user": pl.Series(users, dtype=pl.Categorical),
            "item": [codes[item] for item in items],
            "time": pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("ms")),
        }
    )
    table.write_parquet(tmp_path / "events.parquet")
    domain = run(tmp_path, tmp_path / "events.parquet").domain
    assert domain.user_ids.to_list() == ["ann", "bob", "cid"]
    assert domain.item_table["raw_id"].to_list() == ["0", "1", "2", "3"]
    expected = {user: [str(codes[item]) for item in row] for user, row in toy.sequences.items()}
    assert sequences_of(domain) == expected


def test_pictures_come_along(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,i1,1\na,i2,2\na,i3,3\n")
    (tmp_path / "items.csv").write_text("item,title,image\ni1,A,pictures/1.png\ni2,B,https://host/2.png\ni3,C,\n")
    images = run(tmp_path / "work", tmp_path / "events.csv").domain.item_table["image"].to_list()
    assert images == [str(tmp_path / "pictures" / "1.png"), "https://host/2.png", None]
    for name in ("events.csv", "items.csv"):
        pl.read_csv(tmp_path / name).write_parquet(tmp_path / name.replace("csv", "parquet"))
    table = pl.read_parquet(tmp_path / "items.parquet").with_columns(image=pl.Series([b"\x89PNG", None, None]))
    table.write_parquet(tmp_path / "items.parquet")
    images = run(tmp_path / "work", tmp_path / "events.parquet").domain.item_table["image"].to_list()
    assert images == [b"\x89PNG", None, None]


def test_an_item_described_twice_counts_as_first_described(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,i1,1\n")
    (tmp_path / "items.csv").write_text("item,title\ni1,First\ni1,Second\n")
    assert run(tmp_path, tmp_path / "events.csv").domain.item_table["title"].to_list() == ["First"]


def test_text_fields_are_configured(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["csv"](tmp_path / "source")
    config = PrepareConfig(text_fields=("brand", "title"))
    assert run(tmp_path, folder, config).domain.item_table["text"][3] == "Acme. Ünique Lamp."


def test_text_fields_that_no_item_has_are_refused(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["csv"](tmp_path / "source")
    with pytest.raises(ConfigError, match=r"items have no attribute 'tilte'\. Did you mean 'title'\?$"):
        run(tmp_path, folder, PrepareConfig(text_fields=("brand", "tilte")))


def test_items_may_have_a_text_of_their_own_beside_attributes(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,i1,1\n")
    (tmp_path / "items.csv").write_text("item,colour,text,brand\ni1,Red,All of it.,B\n")
    domain = run(tmp_path, tmp_path / "events.csv").domain
    assert domain.item_table["text"].to_list() == ["All of it"]
    assert domain.attributes == ["brand", "colour"]


def test_attributes_without_known_names_make_the_text(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,i1,1\n")
    (tmp_path / "items.csv").write_text("item,colour,shape\ni1,Red,Round\n")
    assert run(tmp_path, tmp_path / "events.csv").domain.item_table["text"].to_list() == ["Red. Round."]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        ("  a\n b\u2028c ", "a b c"),
        ("Tom &amp; Jerry...", "Tom & Jerry"),
        ("<p>one<br/>two</p>", "one two"),
        ('<a href="x">one</a> &lt;b&gt;two&lt;/b&gt;', "one two"),
        ("3 < 5 and 7 > 6", "3 < 5 and 7 > 6"),
        (["a.", "", None, "b"], "a b"),
        ({"a": 1}, ""),
        (1.5, "1.5"),
        ("half \ud83d", "half ?"),
        (float("nan"), ""),
        (["a", float("nan")], "a"),
        ("na\u00efve".encode(), "na\u00efve"),
        (b"a\xffb", "a\ufffdb"),
    ],
)
def test_clean(value: object, expected: str) -> None:
    assert clean(value) == expected


@settings(deadline=None)
@given(st.text(max_size=40))
def test_clean_gives_one_line_and_is_settled(text: str) -> None:
    once = clean(text)
    assert "\n" not in once
    assert not once.endswith((".", " "))
    assert not any(c.isspace() and c != " " for c in once)


def test_ordered_puts_title_brand_category_first() -> None:
    assert ordered(["x", "category", "a", "title"]) == ["title", "category", "x", "a"]


numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.sampled_from(["", " 5", "+5", "1_0", "0x1", "1e400", ".5", "5.", ".", "５", "1e", "--1", "nan", "1 2"]),
    st.text(max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=5))
def test_columns_of_times_are_parsed_as_single_ones(texts: list[str]) -> None:
    each = [parse_time(text) for text in texts]
    column = parse_times(pl.Series(texts, dtype=pl.String))
    if column is None:
        # Left to the careful path: needed when a value is no time, allowed otherwise.
        assert None in each or not all(isinstance(time, int) for time in each)
    else:
        # One number with a fraction makes all of the column floats, which keep 53 bits of the others.
        wanted = each if column.dtype == pl.Int64 else [float(time) for time in each if time is not None]
        assert column.to_list() == wanted


def test_times_beyond_float_precision_keep_their_order(tmp_path: Path) -> None:
    base = 2**60
    (tmp_path / "events.csv").write_text(f"user,item,time\na,i1,{base + 1}\na,i2,{base}\na,i3,{base + 2}\n")
    assert sequences_of(run(tmp_path, tmp_path / "events.csv").domain) == {"a": ["i2", "i1", "i3"]}


def test_whole_and_broken_times_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 16)
    (tmp_path / "events.csv").write_text("user,item,time\na,i1,3\na,i2,2.5\na,i3,1\na,i4,2.6e0\n")
    assert sequences_of(run(tmp_path, tmp_path / "events.csv").domain) == {"a": ["i3", "i2", "i4", "i1"]}


def test_parse_date() -> None:
    assert parse_date("1970-01-01") == 0
    assert parse_date("1970-01-01T01:00:00.000001+01:00") == 1
    assert parse_date("1970-13-01") is None


def test_python_dictionaries_are_read_but_not_run() -> None:
    assert parse_object("{'a': 'it\\'s', 'b': [1, None]}") == {"a": "it's", "b": [1, None]}
    assert parse_object("{'a': '\\/'}") == {"a": "\\/"}
    assert parse_object("{'a': __import__('os').getcwd()}") is None
    assert parse_object("[1]") is None
    assert parse_object("{" * 5000) is None
    assert parse_object("[" * 100_000) is None


def test_metadata_of_each_year() -> None:
    old = {"title": "T.", "categories": [["A", "B"], ["A", "C"]], "imUrl": "u", "description": "d"}
    assert item_attributes(old) == ["T", "", "A B C", "d", ""]
    assert item_image(old) == "u"
    middle = {"category": ["A", "B"], "feature": ["f", "g"], "imageURLHighRes": ["h"], "imageURL": ["l"], "brand": "X"}
    assert item_attributes(middle) == ["", "X", "A B", "", "f g"]
    assert item_image(middle) == "h"
    new = {
        "main_category": "M",
        "categories": [],
        "store": "S",
        "details": {"Brand": "X"},
        "images": [{"hi_res": None, "large": "2", "variant": "PT01"}, {"thumb": "0", "large": "1", "variant": "MAIN"}],
    }
    assert item_attributes(new) == ["", "X", "M", "", ""]
    assert item_image(new) == "1"
    assert item_image({"images": {"hi_res": [None], "large": ["x"]}}) == "x"
    assert item_image({"images": [], "imageURL": []}) is None


def test_page_source_is_no_title() -> None:
    assert item_attributes({"title": "var a = 1; " * 300, "brand": "X"})[:2] == ["", "X"]


def test_gzip_is_told_by_its_bytes(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["csv"](tmp_path / "source")
    expected = run(tmp_path / "a", folder).domain.fingerprint
    for path in folder.iterdir():
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert run(tmp_path / "b", folder).domain.fingerprint == expected


def test_progress_counts_the_bytes_of_each_file(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["amazon-2018-gz"](tmp_path / "source")
    seen: dict[str, tuple[int, int | None]] = {}

    def progress(done: int, total: int | None, unit: str, note: str = "") -> None:
        assert unit == "bytes"
        seen[note] = (done, total)

    run(tmp_path / "work", folder, progress=progress)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert seen == {name: (size, size) for name, size in sizes.items()}
