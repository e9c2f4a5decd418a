"""Written-out instances become sequences again, exactly."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ckd.data.domain import CONTEXT
from ckd.data.ingest.expanded import Row, merge
from ckd.errors import DataError


def expand(sequence: list[int], cap: int, splits: list[int] | None = None) -> list[Row]:
    """Every instance of a sequence: training from the longest to the shortest, then validation and test."""
    splits = splits or [0] * (len(sequence) - 2) + [1, 2]
    rows = [
        Row(tuple(sequence[max(0, at - cap) : at]), sequence[at], splits[at], f"f:{at}")
        for at in range(len(sequence) - 1, 0, -1)
    ]
    return sorted(rows, key=lambda row: row.split)


def instances(sequence: list[int], splits: list[int], cap: int) -> set[tuple[tuple[int, ...], int, int, int]]:
    """History, target, split and how often such an instance came before."""
    targets = [at for at in range(1, len(sequence)) if splits[at] != CONTEXT]
    found = [(tuple(sequence[max(0, at - cap) : at]), sequence[at], splits[at]) for at in targets]
    return {(*each, found[:n].count(each)) for n, each in enumerate(found)}


def written(rows: list[Row]) -> set[tuple[tuple[int, ...], int, int, int]]:
    found = [(row.history, row.target, row.split) for row in rows]
    return {(*each, found[:n].count(each)) for n, each in enumerate(found)}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=25), st.integers(1, 8), st.booleans())
def test_a_full_benchmark_gives_back_the_sequence(sequence: list[int], cap: int, ascending: bool) -> None:
    rows = expand(sequence, cap)
    if ascending:
        rows = [*rows[:-2][::-1], *rows[-2:]]
    assert merge(rows, cap, "u") == (sequence, [0] * (len(sequence) - 2) + [1, 2])


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 25), st.integers(1, 8), st.randoms(use_true_random=False))
def test_rows_in_any_order_give_back_the_sequence(length: int, cap: int, rng: random.Random) -> None:
    sequence = rng.sample(range(100), length)
    rows = expand(sequence, cap)
    rng.shuffle(rows)
    assert merge(rows, cap, "u") == (sequence, [0] * (length - 2) + [1, 2])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=25),
    st.integers(2, 8),
    st.lists(st.booleans(), min_size=24, max_size=24),
)
def test_rows_left_out_are_context_and_the_others_stay_exact(sequence: list[int], cap: int, kept: list[bool]) -> None:
    rows = [row for row, keep in zip(expand(sequence, cap), kept, strict=False) if keep]
    assume(rows)
    try:
        items, splits = merge(rows, cap, "u")
    except DataError:
        # Where rows between are missing, the windows may not overlap enough, or the order may be lost.
        return
    assert instances(items, splits, cap) == written(rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 25), st.data())
def test_one_missing_row_is_bridged(length: int, data: st.DataObject) -> None:
    sequence = list(range(length))
    rows = expand(sequence, 6)
    missing = data.draw(st.integers(1, len(rows) - 1))
    at = next(at for at in range(1, length) if sequence[at] == rows[missing].target)
    splits = [0] * (length - 2) + [1, 2]
    rest = rows[:missing] + rows[missing + 1 :]
    items, found = merge(rest, 6, "u")
    if at < length - 1:
        splits[at] = CONTEXT
        assert (items, found) == (sequence, splits)
    else:
        assert (items, found) == (sequence[:-1], splits[:-1])


def test_windows_without_their_beginning_start_at_the_first() -> None:
    rows = [Row((3, 4, 5), 6, 1, "f:1"), Row((4, 5, 6), 7, 2, "f:2")]
    assert merge(rows, 3, "u") == ([3, 4, 5, 6, 7], [0, CONTEXT, CONTEXT, 1, 2])


def test_half_a_window_in_common_is_a_continuation() -> None:
    rows = [Row((1, 2, 3, 4), 5, 0, "f:1"), Row((4, 5, 6, 7), 8, 1, "g:1")]
    assert merge(rows, 4, "u") == ([*range(1, 9)], [0, CONTEXT, CONTEXT, CONTEXT, 0, CONTEXT, CONTEXT, 1])


def test_less_is_one_where_it_is_all_there_is() -> None:
    rows = [Row((1,), 2, 0, "f:1"), Row((1, 2, 3, 4, 5, 6), 7, 1, "g:1")]
    assert merge(rows, 6, "u") == ([*range(1, 8)], [0, 0, CONTEXT, CONTEXT, CONTEXT, CONTEXT, 1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [Row((1, 2), 3, 0, "f:2"), Row((1, 4, 3), 5, 0, "f:3")],
            r"f:3: the history of user 'u' does not continue the one on f:2",
        ),
        ([Row((1, 2), 3, 0, "f:2"), Row((1, 2), 3, 0, "f:3")], r"f:3: user 'u' has the same history on f:2"),
        ([Row((1, 2), 3, 1, "g:2"), Row((1, 2), 3, 1, "g:3")], r"g:3: user 'u' has the same history on g:2"),
        ([Row((1, 2), 3, 0, "f:2"), Row((1, 2), 4, 1, "g:2")], r"g:2: the history of user 'u' does not continue"),
        (
            [Row((1, 2, 3, 4), 5, 0, "f:2"), Row((7, 8, 9, 1), 5, 1, "g:2")],
            r"g:2: the history of user 'u' does not continue the one on f:2",
        ),
        # It is the last row before that is named.
        (
            [Row((1,), 2, 0, "f:1"), Row((1, 2, 3, 4), 5, 0, "f:2"), Row((7, 8, 9, 1), 5, 1, "g:2")],
            r"g:2: the history of user 'u' does not continue the one on f:2",
        ),
        # One common item out of four is no continuation.
        (
            [Row((1, 2, 3, 4), 5, 0, "f:2"), Row((5, 8, 9, 1), 5, 1, "g:2")],
            r"g:2: the history of user 'u' does not continue the one on f:2",
        ),
    ],
)
def test_rows_of_no_one_sequence_are_refused(rows: list[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        merge(rows, 4, "u")
