"""Domains of any shape for the plan's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest

from ckd.data.domain import Domain, leave_one_out


def _domain(lengths: Sequence[int], n_items: int = 40, seed: int = 1, history_cap: int = 50) -> Domain:
    """Users of these lengths; items by a linear congruential generator, low numbers more popular."""
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    state, items = seed * 2654435761 % 2**32, []
    for _ in range(int(indptr[-1])):
        state = (1664525 * state + 1013904223) % 2**32
        items.append(1 + (state >> 8) ** 2 * n_items // 2**48)
    table = {"item": list(range(1, n_items + 1)), "raw_id": [f"i{i}" for i in range(n_items)], "text": [""] * n_items}
    return Domain(
        name="made",
        indptr=indptr,
        items=np.array(items, dtype=np.int32),
        split=leave_one_out(indptr),
        item_table=pl.DataFrame(table),
        user_ids=pl.Series([f"u{u}" for u in range(len(lengths))], dtype=pl.String),
        history_cap=history_cap,
    )


@pytest.fixture(scope="session")
def make_domain() -> Callable[..., Domain]:
    """Builds a domain from users' sequence lengths."""
    return _domain


@pytest.fixture(scope="session")
def small_domain() -> Domain:
    """120 users of 3 to 32 items."""
    return _domain([3 + (u * u * 7 + u) % 30 for u in range(120)], n_items=60)
