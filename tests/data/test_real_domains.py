"""The real domains load with the counts of their README, and the benchmark's split is its own to the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckd.data.domain import SPLITS, Domain
from ckd.pipelines.prepare import Prepared, prepare

COUNTS = {
    "scientific": ("unisrec", 8442, 4385, 59_427),
    "office": ("recbole", 3231, 3317, 22_447),
    "toys": ("sequences", 19_412, 11_924, 167_597),
    "sports": ("sequences", 35_598, 18_357, 296_337),
}


@pytest.fixture(scope="module")
def real(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    work = tmp_path_factory.mktemp("work")
    return {name: prepare(work, data_dir / name, name=name) for name in COUNTS if (data_dir / name).is_dir()}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_readme(real: dict[str, Prepared], name: str) -> None:
    if name not in real:
        pytest.skip(f"no {name} in the data folder")
    format, users, items, interactions = COUNTS[name]
    prepared = real[name]
    found = prepared.statistics
    assert (prepared.format, found["users"], found["items"], found["interactions"]) == (
        format,
        users,
        items,
        interactions,
    )
    assert prepared.malformed == ()
    assert sum(each.interactions for each in prepared.removed) == 0
    assert all(prepared.domain.item_table["text"])
    assert len(prepared.domain.instances("test")) == users
    folder = prepared.domain.folder
    assert folder is not None
    assert Domain.load(folder).fingerprint == prepared.domain.fingerprint


def test_every_row_of_scientific_is_an_instance_and_the_other_way_round(
    real: dict[str, Prepared], data_dir: Path
) -> None:
    if "scientific" not in real:
        pytest.skip("no scientific in the data folder")
    domain = real["scientific"].domain
    folder = data_dir / "scientific"
    raw_user = dict(line.split("\t")[::-1] for line in (folder / "Scientific.user2index").read_text().splitlines())
    raw_item = dict(line.split("\t")[::-1] for line in (folder / "Scientific.item2index").read_text().splitlines())
    ids = ["", *domain.item_table["raw_id"].to_list()]
    for split, count in zip(SPLITS, (34_101, 8442, 8442), strict=True):
        rows = [line.split("\t") for line in (folder / f"Scientific.{split}.inter").read_text().splitlines()[1:]]
        written = [
            (raw_user[user], [raw_item[item] for item in history.split()], raw_item[target])
            for user, history, target in rows
        ]
        found = domain.instances(split)
        held = [
            (domain.user_ids[int(user)], [ids[item] for item in domain.items[start:stop]], ids[target])
            for user, target, start, stop in zip(found.users, found.targets, found.starts, found.stops, strict=True)
        ]
        assert len(held) == len(written) == count
        # As multisets: two instances of a user may be equal.
        assert sorted(held) == sorted(written)


def test_texts_of_scientific_are_as_given(real: dict[str, Prepared], data_dir: Path) -> None:
    if "scientific" not in real:
        pytest.skip("no scientific in the data folder")
    lines = (data_dir / "scientific" / "Scientific.text").read_text().split("\n")[1:]
    given = dict(line.split("\t") for line in lines if line)
    table = real["scientific"].domain.item_table
    for raw, text in zip(table["raw_id"], table["text"], strict=True):
        assert text == " ".join(given[raw].split())


def test_repeated_purchases_of_office_stay(real: dict[str, Prepared]) -> None:
    if "office" not in real:
        pytest.skip("no office in the data folder")
    domain = real["office"].domain
    pairs = set(zip(domain.user_of.tolist(), domain.items.tolist(), strict=True))
    assert len(domain.items) - len(pairs) == 1259
    assert domain.attributes == ["title", "brand", "description"]
