"""One small domain, written in every format that can be ingested."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

#: In file order: users are interleaved, and two of a user's interactions share a time.
INTERACTIONS = [
    ("ann", "i3", 10),
    ("bob", "i1", 5),
    ("ann", "i1", 20),
    ("ann", "i4", 20),
    ("cid", "i2", 7),
    ("bob", "i2", 6),
    ("bob", "i3", 8),
    ("ann", "i2", 15),
    ("cid", "i1", 1),
    ("cid", "i3", 9),
]

#: What they come to, oldest first.
SEQUENCES = {"ann": ["i3", "i2", "i1", "i4"], "bob": ["i1", "i2", "i3"], "cid": ["i1", "i2", "i3"]}

#: Title, brand, category as the sources write them.
ITEMS = {
    "i1": ("Garden &amp; Home <b>Hose</b>.", "Acme", ["Garden", "Hoses"]),
    "i2": ('Blue\u2028Kettle 12" ', "", ["Kitchen"]),
    "i3": ("Chair...", "Wood Co.", []),
    "i4": ("Ünique Lamp", "Acme", ["Home"]),
}

#: What they come to for sources with attributes.
TEXTS = {
    "i1": "Garden & Home Hose. Garden Hoses. Acme.",
    "i2": "Blue Kettle 12. Kitchen.",
    "i3": "Chair. Wood Co.",
    "i4": "Ünique Lamp. Home. Acme.",
}

#: What they are written as in sources of bare text.
BARE = {"i1": "garden hose", "i2": "blue kettle", "i3": "chair", "i4": "lamp"}


def write(path: Path, lines: list[str], *, zipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def recbole(folder: Path) -> Path:
    rows = [f"{u}\t4.0\t{i}\t{t}" for u, i, t in INTERACTIONS]
    write(folder / "Toy.inter", ["user_id:token\trating:float\titem_id:token\ttimestamp:float", *rows])
    items = [f"{i}\t{' '.join(c)}\t{t.replace(chr(10), ' ')}\t1.5 2\t{b}" for i, (t, b, c) in ITEMS.items()]
    header = "item_id:token\tcategories:token_seq\ttitle:token_seq\tvector:float_seq\tbrand:token"
    write(folder / "Toy.item", [header, *items])
    return folder


def unisrec(folder: Path) -> Path:
    users, items = sorted(SEQUENCES), sorted(ITEMS)
    write(folder / "Toy.user2index", [f"{raw}\t{n}" for n, raw in enumerate(users)])
    write(folder / "Toy.item2index", [f"{raw}\t{n}" for n, raw in enumerate(items)])
    write(folder / "Toy.text", ["item_id:token\ttext:token_seq", *(f"{i}\t{text}. " for i, text in BARE.items())])
    rows: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for n, user in enumerate(users):
        sequence = [str(items.index(item)) for item in SEQUENCES[user]]
        for at in range(len(sequence) - 1, 0, -1):
            part = {len(sequence) - 1: "test", len(sequence) - 2: "valid"}.get(at, "train")
            rows[part].append(f"{n}\t{' '.join(sequence[:at])}\t{sequence[at]}")
    for part, found in rows.items():
        write(folder / f"Toy.{part}.inter", ["user_id:token\titem_id_list:token_seq\titem_id:token", *found])
    return folder


def sequences(folder: Path) -> Path:
    write(folder / "user_sequence.txt", [f"{user} {' '.join(items)}" for user, items in SEQUENCES.items()])
    write(folder / "item_text.txt", [f"{item} {text}" for item, text in BARE.items()])
    return folder


def csv(folder: Path) -> Path:
    write(folder / "events.csv", ["timestamp,user,item", *(f"{t},{u},{i}" for u, i, t in INTERACTIONS)])
    rows = []
    for item, (title, brand, category) in ITEMS.items():
        quoted = title.replace('"', '""').replace(" ", "\n", 1)
        rows.append(f'"{quoted}",{item},{" ".join(category)},{brand}')
    write(folder / "items.csv", ["title,item,category,brand", *rows])
    return folder


def parquet(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    users, items, times = zip(*INTERACTIONS, strict=True)
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).write_parquet(folder / "events.parquet")
    titles, brands, categories = zip(*ITEMS.values(), strict=True)
    pl.DataFrame({"item_id": list(ITEMS), "title": titles, "brand": brands, "category": categories}).write_parquet(
        folder / "items.parquet"
    )
    return folder


def amazon(year: int, zipped: bool) -> Callable[[Path], Path]:
    def write_source(folder: Path) -> Path:
        reviews, items = [], []
        for user, item, time in INTERACTIONS:
            old = {"reviewerID": user, "asin": item, "reviewText": 'a "b" {c}', "unixReviewTime": time}
            new = {"rating": 5.0, "title": "Good", "asin": "x" + item, "parent_asin": item, "user_id": user}
            reviews.append(json.dumps(new | {"timestamp": time} if year == 2023 else old))
        for item, (title, brand, category) in ITEMS.items():
            if year == 2014:
                value = {"asin": item, "title": title, "brand": brand, "categories": [["Top"], category], "price": 1.5}
                value["categories"] = [category, category[:1]]
                items.append(repr(value))
            elif year == 2018:
                items.append(json.dumps({"category": category, "brand": brand, "asin": item, "title": title}))
            else:
                row = {"main_category": "", "title": title, "store": brand, "categories": category}
                items.append(json.dumps(row | {"parent_asin": item, "details": {}}))
        end = ("jsonl" if year == 2023 else "json") + (".gz" if zipped else "")
        write(folder / f"Toy_5.{end}", reviews, zipped=zipped)
        write(folder / f"meta_Toy.{end}", items, zipped=zipped)
        return folder

    return write_source


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "recbole": ("recbole", recbole),
    "unisrec": ("unisrec", unisrec),
    "sequences": ("sequences", sequences),
    "csv": ("csv", csv),
    "parquet": ("parquet", parquet),
    **{
        f"amazon-{year}{'-gz' if zipped else ''}": ("amazon", amazon(year, zipped))
        for year in (2014, 2018, 2023)
        for zipped in (False, True)
    },
}


@dataclass(frozen=True)
class Toy:
    """The domain, and how to write it: `Toy.write[source](folder)` returns what to prepare."""

    interactions: list[tuple[str, str, int]]
    sequences: dict[str, list[str]]
    items: dict[str, tuple[str, str, list[str]]]
    texts: dict[str, str]
    bare: dict[str, str]
    write: dict[str, Callable[[Path], Path]]


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(INTERACTIONS, SEQUENCES, ITEMS, TEXTS, BARE, {name: writer for name, (_, writer) in WRITERS.items()})


@dataclass(frozen=True)
class Written:
    """One source on disk."""

    name: str
    format: str
    source: Path


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    """The domain in every format in turn."""
    format, writer = WRITERS[request.param]
    return Written(request.param, format, writer(tmp_path / "source"))
