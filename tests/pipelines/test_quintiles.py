"""Quintiles of the cold-start study: equal values stay together, and nothing is lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.pipelines.reproduce.cold_start import quintiles


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_quintiles_part_the_rows_and_never_equal_values(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    strata = quintiles(array)
    rows = np.concatenate([stratum.rows for stratum in strata])
    assert sorted(rows.tolist()) == list(range(len(values)))
    for before, after in pairwise(strata):
        assert before.high < after.low
        assert before.number < after.number
    assert all(1 <= stratum.number <= 5 for stratum in strata)


def test_quintiles_of_distinct_values_are_equal_in_size() -> None:
    assert [len(stratum.rows) for stratum in quintiles(np.arange(50))] == [10] * 5
    assert [(s.low, s.high) for s in quintiles(np.arange(10))] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def test_quintiles_of_another_population() -> None:
    items = np.array([0, 0, 1, 2, 3, 5, 8, 13, 21, 34])
    strata = quintiles(np.array([34, 0, 34, 8, 2]), items)
    assert [(s.number, s.rows.tolist()) for s in strata] == [(1, [1]), (2, [4]), (4, [3]), (5, [0, 2])]
