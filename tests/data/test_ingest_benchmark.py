"""The benchmark form that UniSRec ships: numbers, texts and histories are taken as the source gives them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.config import PrepareConfig
from ckd.data.domain import Domain
from ckd.errors import DataError
from ckd.pipelines.prepare import Prepared, prepare

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"

#: Numbers that leave gaps, and fall where their lines rise.
USERS = {"ann": 7, "bob": 5, "cid": 11}
ITEMS = {"i1": 30, "i2": 4, "i3": 12, "i4": 100}


def run(work: Path, source: Path, **config: Any) -> Prepared:
    return prepare(work, source, name="toy", config=PrepareConfig(**config))


def sequences_of(domain: Domain) -> dict[str, list[str]]:
    raw = ["", *domain.item_table["raw_id"].to_list()]
    rows = np.split(domain.items, domain.indptr[1:-1])
    return {user: [raw[i] for i in row] for user, row in zip(domain.user_ids.to_list(), rows, strict=True)}


def write(folder: Path, sequences: dict[str, list[str]], cap: int = 50) -> Path:
    """The sequences with the numbers above, of each history the last `cap` items."""
    folder.mkdir()
    (folder / "Toy.user2index").write_text("".join(f"{raw}\t{number}\n" for raw, number in USERS.items()))
    (folder / "Toy.item2index").write_text("".join(f"{raw}\t{number}\n" for raw, number in ITEMS.items()))
    (folder / "Toy.text").write_text("item_id:token\ttext:token_seq\n" + "".join(f"{raw}\tA {raw}\n" for raw in ITEMS))
    rows: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user, sequence in sequences.items():
        numbers = [str(ITEMS[item]) for item in sequence]
        for at in range(len(numbers) - 1, 0, -1):
            part = {len(numbers) - 1: "test", len(numbers) - 2: "valid"}.get(at, "train")
            rows[part].append(f"{USERS[user]}\t{' '.join(numbers[max(0, at - cap) : at])}\t{numbers[at]}\n")
    for part, found in rows.items():
        (folder / f"Toy.{part}.inter").write_text(HEADER + "".join(found))
    return folder


def test_items_and_users_stand_in_the_order_of_their_numbers(toy: Any, tmp_path: Path) -> None:
    domain = run(tmp_path, write(tmp_path / "source", toy.sequences)).domain
    assert domain.item_table["raw_id"].to_list() == sorted(ITEMS, key=lambda raw: ITEMS[raw])
    assert domain.user_ids.to_list() == sorted(USERS, key=lambda raw: USERS[raw])
    assert sequences_of(domain) == toy.sequences


def test_an_item_without_text_is_named_by_its_line_of_the_index(toy: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "source", toy.sequences)
    text = folder / "Toy.text"
    text.write_text(text.read_text().replace("i4\tA i4\n", ""))
    with pytest.raises(DataError, match=r"Toy\.item2index:4: an item without metadata in Toy\.text: 'i4'"):
        run(tmp_path, folder)


@pytest.mark.parametrize("cap", [1, 3, 8])
def test_histories_that_the_source_cuts_are_windows_of_one_sequence(cap: int, tmp_path: Path) -> None:
    sequences = {"ann": ["i1", "i2", "i3", "i4", "i2", "i1", "i3", "i3"], "bob": ["i4", "i2", "i1"]}
    domain = run(tmp_path, write(tmp_path / "source", sequences, cap)).domain
    assert sequences_of(domain) == sequences
    assert domain.split.tolist() == [0, 1, 2, *[0] * 6, 1, 2]


def test_an_item_described_twice_counts_as_first_described(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    text = folder / "Toy.text"
    text.write_text(text.read_text() + "i1\tsomething else\n")
    assert run(tmp_path, folder).domain.item_table["title"][0] == toy.bare["i1"]


def test_an_id_with_two_numbers_keeps_the_smaller_where_rows_may_be_skipped(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    index = folder / "Toy.item2index"
    index.write_text(index.read_text() + "i1\t4\n")
    prepared = run(tmp_path, folder, on_error="skip")
    assert [(each.kind, each.rows, each.first) for each in prepared.malformed] == [("an id given twice", 1, 5)]
    assert prepared.domain.item_table["raw_id"].to_list() == ["i1", "i2", "i3", "i4"]
    assert sequences_of(prepared.domain) == toy.sequences


@pytest.mark.parametrize("line", ["\t9", "i9\t\u00b2", "i9\t\uff11", "i9\t1" + "0" * 19])
def test_an_index_line_of_no_id_or_no_number_is_refused(line: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    index = folder / "Toy.item2index"
    index.write_text(index.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"Toy\.item2index:5: not a raw id, tab, number: "):
        run(tmp_path, folder)


def test_two_benchmarks_in_one_folder_are_named(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    (folder / "Other.train.inter").write_text(HEADER)
    with pytest.raises(DataError, match=r"expected one NAME\.train\.inter, found Other\.train\.inter, Toy\.train\."):
        run(tmp_path, folder)
    assert run(tmp_path, folder / "Toy.train.inter").read == len(toy.interactions)


@pytest.mark.parametrize(
    ("file", "header"),
    [
        ("Toy.train.inter", HEADER.replace("\n", "\titem_id:token\n")),
        ("Toy.text", "item_id:token\ttext:token_seq\titem_id:token\n"),
    ],
)
def test_a_column_named_twice_is_refused(file: str, header: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    (folder / file).write_text(header)
    with pytest.raises(DataError, match=rf"{re.escape(file)}:1: two columns are called 'item_id'"):
        run(tmp_path, folder)


def test_files_that_hold_headers_alone_are_no_benchmark(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    for part in ("train", "valid", "test"):
        (folder / f"Toy.{part}.inter").write_text(HEADER)
    with pytest.raises(DataError, match=r"Toy\.train\.inter: no instances\.$"):
        run(tmp_path, folder)


@pytest.mark.parametrize("file", ["Toy.valid.inter", "Toy.text"])
def test_a_file_of_blank_lines_is_refused_at_its_first(file: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    (folder / file).write_text("\n \n")
    with pytest.raises(DataError, match=rf"{re.escape(file)}:1: column '' has no type"):
        run(tmp_path, folder)
