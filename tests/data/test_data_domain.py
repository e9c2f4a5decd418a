"""A domain in memory and on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.data.domain import CONTEXT, SPLITS, Domain, leave_one_out
from ckd.errors import DataError

lengths_of_users = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def make(lengths: list[int], n_items: int = 7, cap: int = 3, seed: int = 0) -> Domain:
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = [f"i{n}" for n in range(n_items)]
    table = pl.DataFrame(
        {"item": range(1, n_items + 1), "raw_id": ids, "text": [f"Thing {i}." for i in ids], "title": ids},
        schema_overrides={"item": pl.Int32},
    )
    return Domain(
        name="toy",
        indptr=indptr,
        items=rng.integers(1, n_items + 1, int(indptr[-1])).astype(np.int32),
        split=leave_one_out(indptr),
        item_table=table,
        user_ids=pl.Series("raw_id", [f"u{n}" for n in range(len(lengths))]),
        history_cap=cap,
        notes={"source": "made up"},
    )


@settings(deadline=None)
@given(lengths_of_users)
def test_leave_one_out_takes_the_last_two(lengths: list[int]) -> None:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    split = leave_one_out(indptr)
    for user, length in enumerate(lengths):
        own = split[indptr[user] : indptr[user + 1]].tolist()
        expected = [0] * length
        if length >= 2:
            expected[-1] = 2
        if length >= 3:
            expected[-2] = 1
        assert own == expected


@settings(deadline=None)
@given(lengths_of_users, st.integers(1, 12), st.integers(0, 99))
def test_instances_are_every_target_with_its_capped_history(lengths: list[int], cap: int, seed: int) -> None:
    domain = make(lengths, cap=cap, seed=seed)
    found = {}
    for split in SPLITS:
        instances = domain.instances(split)
        assert (np.diff(instances.stops) > 0).all()
        assert (instances.lengths == instances.stops - instances.starts).all()
        for user, target, start, stop in zip(
            instances.users, instances.targets, instances.starts, instances.stops, strict=True
        ):
            found[split, int(user), int(stop)] = (domain.items[start:stop].tolist(), int(target))
    expected = {}
    for user, length in enumerate(lengths):
        first = sum(lengths[:user])
        sequence = domain.items[first : first + length].tolist()
        for at in range(1, length):
            code = "test" if at == length - 1 else "valid" if at == length - 2 else "train"
            expected[code, user, first + at] = (sequence[max(0, at - cap) : at], sequence[at])
    assert found == expected


def test_the_training_part_ends_before_the_first_held_out_target() -> None:
    domain = make([5, 2, 4])
    # The second user's context after a test target, as a given split may have it, is no training data either.
    split = np.array([0, 0, 0, 1, 2, 2, CONTEXT, CONTEXT, 0, 1, 2], dtype=np.uint8)
    domain = replace(domain, split=split)
    assert domain.training_part.tolist() == [True] * 3 + [False] * 4 + [True, True, False, False]
    assert domain.popularity.sum() == 5
    assert domain.popularity[0] == 0
    expected = np.bincount(domain.items[[0, 1, 2, 7, 8]], minlength=domain.n_items + 1)
    assert domain.popularity.tolist() == expected.tolist()


def test_context_is_history_but_no_target() -> None:
    domain = replace(make([4]), split=np.array([0, CONTEXT, 0, 2], dtype=np.uint8))
    train = domain.instances("train")
    assert train.stops.tolist() == [2]
    assert domain.instances("test").lengths.tolist() == [3]
    assert len(domain.instances("valid")) == 0


def test_statistics_are_table_2() -> None:
    assert make([5, 3], n_items=4).statistics() == {
        "users": 2,
        "items": 4,
        "interactions": 8,
        "average_length": 4.0,
        "sparsity": 0.0,
    }


@settings(max_examples=15, deadline=None)
@given(lengths_of_users, st.integers(1, 12), st.integers(0, 99))
def test_saving_and_loading_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cap: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("domain") / "toy"
    domain = make(lengths, cap=cap, seed=seed)
    assert domain.save(folder).folder == folder
    loaded = Domain.load(folder)
    assert loaded.fingerprint == domain.fingerprint
    for name in ("indptr", "items", "split"):
        assert np.array_equal(getattr(loaded, name), getattr(domain, name))
        assert getattr(loaded, name).dtype == getattr(domain, name).dtype
    assert loaded.item_table.equals(domain.item_table)
    assert loaded.user_ids.to_list() == domain.user_ids.to_list()
    assert (loaded.name, loaded.history_cap, loaded.notes, loaded.folder) == ("toy", cap, domain.notes, folder)
    assert loaded.attributes == ["title"]


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make([5, 4]).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_saving_again_keeps_features_and_replaces_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    make([5, 4]).save(folder)
    (folder / "features").mkdir()
    (folder / "features" / "text.json").write_text("{}")
    (folder / "stray").write_text("")
    make([6, 4]).save(folder)
    assert Domain.load(folder).indptr.tolist() == [0, 6, 10]
    assert (folder / "features" / "text.json").read_text() == "{}"
    assert not (folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def changes() -> dict[str, Domain]:
    base = make([5, 4])
    table = base.item_table
    items, split = base.items.copy(), base.split.copy()
    items[0] = items[0] % 7 + 1
    split[0] = CONTEXT
    shifted = table.with_columns(pl.Series("raw_id", ["i0i", "1", *table["raw_id"].to_list()[2:]]))
    return {
        "item": replace(base, items=items),
        "split": replace(base, split=split),
        "cap": replace(base, history_cap=4),
        "user": replace(base, user_ids=pl.Series("raw_id", ["u0", "v1"])),
        "boundary": replace(base, indptr=np.array([0, 4, 9], dtype=np.int64)),
        "text": replace(base, item_table=table.with_columns(text=pl.lit("x"))),
        "attribute": replace(base, item_table=table.with_columns(title=pl.lit("x"))),
        "attribute name": replace(base, item_table=table.rename({"title": "brand"})),
        "ids that concatenate alike": replace(base, item_table=shifted),
    }


def test_the_fingerprint_is_of_the_content() -> None:
    prints = [make([5, 4]).fingerprint, *(domain.fingerprint for domain in changes().values())]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_knows_no_paths_names_or_pictures(tmp_path: Path) -> None:
    domain = make([5, 4])
    other = replace(
        domain, name="other", folder=tmp_path, notes={}, item_table=domain.item_table.with_columns(image=pl.lit("a"))
    )
    assert other.fingerprint == domain.fingerprint


@pytest.mark.parametrize("change", changes())
def test_content_that_was_changed_is_refused(tmp_path: Path, change: str) -> None:
    make([5, 4]).save(tmp_path / "good")
    meta = (tmp_path / "good" / "domain.json").read_text()
    changes()[change].save(tmp_path / "bad")
    claimed = json.loads(meta) | {"history_cap": changes()[change].history_cap}
    (tmp_path / "bad" / "domain.json").write_text(json.dumps(claimed))
    with pytest.raises(DataError, match=r"content hashes to [0-9a-f]{32}, domain\.json says [0-9a-f]{32}"):
        Domain.load(tmp_path / "bad")


def damage_meta(folder: Path, **values: object) -> None:
    path = folder / "domain.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_users_out_of_order_are_refused(tmp_path: Path) -> None:
    domain = make([2, 2]).save(tmp_path / "toy")
    assert domain.folder is not None
    path = domain.folder / "interactions.parquet"
    # As many rows per user as before, so that only the order tells.
    pl.read_parquet(path).with_columns(user=pl.Series([0, 1, 0, 1], dtype=pl.Int32)).write_parquet(path)
    with pytest.raises(DataError, match="out of order"):
        Domain.load(domain.folder)


def test_items_out_of_order_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    make([2, 2]).save(folder)
    path = folder / "items.parquet"
    pl.read_parquet(path).with_columns(pl.col("item") + 1).write_parquet(path)
    with pytest.raises(DataError, match="out of order"):
        Domain.load(folder)


@pytest.mark.parametrize("file", ["interactions.parquet", "items.parquet", "users.parquet"])
def test_a_damaged_or_missing_table_is_one_line(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "toy"
    make([3]).save(folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{file}: cannot be read") as caught:
        Domain.load(folder)
    assert "\n" not in str(caught.value)
    (folder / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: no such file"):
        Domain.load(folder)


def test_a_table_without_its_column_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    make([3]).save(folder)
    path = folder / "interactions.parquet"
    table = pl.read_parquet(path)
    table.drop("split").write_parquet(path)
    with pytest.raises(DataError, match="column 'split' is missing"):
        Domain.load(folder)
    table.with_columns(pl.col("item").cast(pl.String)).write_parquet(path)
    with pytest.raises(DataError, match="must be integers"):
        Domain.load(folder)


def test_no_domain_another_format_and_bad_json_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared domain here"):
        Domain.load(tmp_path / "absent")
    folder = tmp_path / "toy"
    make([3]).save(folder)
    damage_meta(folder, format=99)
    with pytest.raises(DataError, match="format 99, this version reads"):
        Domain.load(folder)
    for text, message in (("[]", "expected a JSON object, found list"), ("{}", "format None")):
        (folder / "domain.json").write_text(text)
        with pytest.raises(DataError, match=message):
            Domain.load(folder)
    with pytest.raises(DataError, match=r"no prepared domain here\. Run `ckd prepare` first\. Did you mean 'toy'\?$"):
        Domain.load(tmp_path / "toi")
    (folder / "domain.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Domain.load(folder)
    (folder / "domain.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="no fingerprint and no history_cap"):
        Domain.load(folder)
