"""Rows come back from the spool in the order of adding, whatever the parts they lie in."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckd.data.ingest import spool
from ckd.data.ingest.spool import interaction_spool, item_spool, parse_time

TIMES = st.lists(st.one_of(st.integers(-9, 9), st.floats(-9, 9)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.tuples(TIMES, st.booleans()), max_size=4), size=st.integers(1, 5))
def test_rows_come_back_in_their_order_and_times_as_floats_where_one_is(
    chunks: list[tuple[list[int | float], bool]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    collected = interaction_spool(tmp_path_factory.mktemp("spool"))
    added: list[tuple[str, str, int | float, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "ROWS_PER_PART", size)
        for times, whole in chunks:
            rows = [("u", f"i{len(added) + n}", time, len(added) + n) for n, time in enumerate(times)]
            added += rows
            kind = pl.Int64 if all(isinstance(time, int) for time in times) else pl.Float64
            if whole:
                collected.add_frame(pl.DataFrame(rows, schema={**collected.schema, "order": kind}, orient="row"))
            else:
                for row in rows:
                    collected.add(row)
        frame = collected.finish().collect()
    assert frame.rows() == added
    assert collected.rows == len(added)
    assert frame.schema["order"] == (pl.Int64 if all(isinstance(row[2], int) for row in added) else pl.Float64)


def test_rows_leave_the_memory_as_parts_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "ROWS_PER_PART", 2)
    collected = item_spool(tmp_path, ["title"])
    for number in range(5):
        collected.add((f"i{number}", number, ""))
        assert len(list((tmp_path / "items").iterdir())) == (number + 1) // 2
    assert collected.finish().collect()["raw_id"].to_list() == [f"i{number}" for number in range(5)]


@given(value=st.integers(-(2**64), 2**64), zeros=st.integers(0, 30))
@example(value=2**63, zeros=0)
@example(value=2**63 - 1, zeros=5)
@example(value=-(2**63), zeros=30)
@example(value=-(2**63) - 1, zeros=0)
def test_whole_times_are_those_that_64_bits_hold(value: int, zeros: int) -> None:
    text = ("-" if value < 0 else "") + "0" * zeros + str(abs(value))
    assert parse_time(text) == (value if -(2**63) <= value < 2**63 else None)
