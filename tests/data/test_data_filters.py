"""Filters take what they say and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.data.coding import Coded, compact
from ckd.data.filters import drop_duplicates, k_core, keep_items, min_length, removed
from ckd.data.ingest.spool import ITEM, LINE, ORDER, USER

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), max_size=40)


def coded(found: list[tuple[int, int, int]]) -> Coded:
    """Rows of (user, item, time); the line is the place in the list."""
    schema = {USER: pl.UInt32, ITEM: pl.UInt32, ORDER: pl.Int64, LINE: pl.UInt32}
    lined = [(*row, line) for line, row in enumerate(found)]
    table = pl.DataFrame(lined, schema=schema, orient="row").sort(USER, ORDER, LINE)
    return Coded(table, pl.Series([f"u{n}" for n in range(5)]), pl.Series([f"i{n}" for n in range(5)]))


def lines(of: Coded) -> list[int]:
    return of.table[LINE].to_list()


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(1, 4), st.integers(1, 4))
def test_k_core_is_the_largest_set_with_enough(found: list[tuple[int, int, int]], user: int, item: int) -> None:
    left = list(enumerate(found))
    while True:
        users, items = Counter(row[0] for _, row in left), Counter(row[1] for _, row in left)
        # One row at a time: any order of removal comes to the same.
        bad = next((each for each in left if users[each[1][0]] < user or items[each[1][1]] < item), None)
        if bad is None:
            break
        left.remove(bad)
    core = k_core(coded(found), user, item)
    assert sorted(lines(core)) == [line for line, _ in left]
    assert core.table.equals(core.table.sort(USER, ORDER, LINE))
    assert k_core(core, user, item).table.equals(core.table)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_duplicates_keep_the_first(found: list[tuple[int, int, int]]) -> None:
    seen: set[tuple[int, ...]] = set()
    expected = []
    for line, row in enumerate(found):
        if row not in seen:
            expected.append(line)
        seen.add(row)
    assert sorted(lines(drop_duplicates(coded(found), "exact"))) == expected
    pairs: dict[tuple[int, int], int] = {}
    for line, (user, item, _) in sorted(enumerate(found), key=lambda each: (each[1][2], each[0])):
        pairs.setdefault((user, item), line)
    assert sorted(lines(drop_duplicates(coded(found), "pair"))) == sorted(pairs.values())
    assert lines(drop_duplicates(coded(found), "none")) == lines(coded(found))


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(1, 6))
def test_min_length_and_keep_items(found: list[tuple[int, int, int]], fewest: int) -> None:
    lengths = Counter(user for user, _, _ in found)
    long = [line for line, row in enumerate(found) if lengths[row[0]] >= fewest]
    assert sorted(lines(min_length(coded(found), fewest))) == long
    wanted = np.array([True, False, True, False, True])
    kept = [line for line, row in enumerate(found) if row[1] % 2 == 0]
    assert sorted(lines(keep_items(coded(found), wanted))) == kept


@settings(max_examples=40, deadline=None)
@given(rows)
def test_what_is_removed_is_counted(found: list[tuple[int, int, int]]) -> None:
    before = coded(found)
    after = k_core(before, 2, 2)
    left = [found[line] for line in lines(after)]
    counted = removed("core", before, after)
    assert counted.filter == "core"
    assert counted.interactions == len(found) - len(left)
    assert counted.users == len({row[0] for row in found}) - len({row[0] for row in left})
    assert counted.items == len({row[1] for row in found}) - len({row[1] for row in left})


@settings(max_examples=40, deadline=None)
@given(rows.filter(bool))
def test_compacting_keeps_raw_ids_and_order(found: list[tuple[int, int, int]]) -> None:
    before = coded(found)
    after = compact(before)
    for name, ids, all_ids in ((USER, after.users, before.users), (ITEM, after.items, before.items)):
        assert [ids[n] for n in after.table[name]] == [all_ids[n] for n in before.table[name]]
        assert len(ids) == after.table[name].n_unique()
        assert ids.is_sorted()
    assert compact(before, keep_all_items=True).items.to_list() == before.items.to_list()
