"""Raw ids as numbers: what filters and the domain work on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.ingest.raw import Numbering, RawDomain
from ckd.data.ingest.spool import ITEM, LINE, ORDER, USER


@dataclass(frozen=True)
class Coded:
    """Interactions under numbers.

    Attributes:
        table: one row per interaction, `user` and `item` as UInt32 positions in the lists below, `order`, `#line`,
            and `split` where the source has one; by user, then time, then place in the file.
        users: raw user ids.
        items: raw item ids.
    """

    table: pl.DataFrame
    users: pl.Series
    items: pl.Series

    @property
    def n_users(self) -> int:
        """Users with an interaction."""
        return self.table[USER].n_unique()

    @property
    def n_items(self) -> int:
        """Items with an interaction."""
        return self.table[ITEM].n_unique()

    def keep(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.integer] | pl.Series) -> Coded:
        """Only these rows of the table, by a mask or by ascending positions."""
        if isinstance(rows, pl.Series) or rows.dtype == np.bool_:
            return replace(self, table=self.table.filter(pl.Series(rows)))
        return replace(self, table=self.table[rows])


def encode(raw: RawDomain) -> Coded:
    """Number the users and items of a source: as it numbers them itself, else in sorted order of their raw ids.

    Sorted numbers depend on nothing but the ids: neither on the order of the rows nor on the number of threads. Only
    one string column is in memory at a time; the table takes about 25 bytes per interaction.
    """
    numbering = raw.numbering or Numbering(_distinct(raw.interactions, USER), _distinct(raw.interactions, ITEM))
    lazy = raw.interactions
    for name, ids in ((USER, numbering.users), (ITEM, numbering.items)):
        codes = pl.LazyFrame({name: ids, f"#{name}": pl.int_range(len(ids), dtype=pl.UInt32, eager=True)})
        lazy = lazy.join(codes, on=name, how="left").drop(name).rename({f"#{name}": name})
    table = lazy.collect(engine="streaming")
    # A join keeps no order. Rows of one line (a user's sequence) differ in their order, so the sort is total.
    return Coded(table.sort([USER, ORDER, LINE]), numbering.users, numbering.items)


def _distinct(interactions: pl.LazyFrame, name: str) -> pl.Series:
    return interactions.select(pl.col(name).unique()).collect(engine="streaming").to_series().sort()


def compact(coded: Coded, keep_all_items: bool = False) -> Coded:
    """Number anew without the users, and unless told the items, that have no interaction left; order is kept."""
    users, table = _dense(coded.table, USER, coded.users)
    if keep_all_items:
        return Coded(table, users, coded.items)
    items, table = _dense(table, ITEM, coded.items)
    return Coded(table, users, items)


def _dense(table: pl.DataFrame, name: str, ids: pl.Series) -> tuple[pl.Series, pl.DataFrame]:
    codes = table[name].to_numpy()
    used = np.zeros(len(ids), dtype=np.bool_)
    used[codes] = True
    numbers = (np.cumsum(used, dtype=np.int64) - 1).astype(np.uint32)
    return ids.filter(pl.Series(used)), table.with_columns(pl.Series(name, numbers[codes]))
