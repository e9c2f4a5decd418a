"""What is left out of a source, and how much each filter took.

Every filter maps coded interactions to fewer of them, in the same order, and depends on their content alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ckd.data.coding import Coded
from ckd.data.ingest.spool import ITEM, ORDER, USER

Duplicates = Literal["exact", "pair", "none"]


@dataclass(frozen=True)
class Removed:
    """What one filter took away.

    Attributes:
        filter: its name.
        interactions: rows removed.
        users: users left without any interaction by it.
        items: items left without any interaction by it.
    """

    filter: str
    interactions: int
    users: int
    items: int


def removed(name: str, before: Coded, after: Coded) -> Removed:
    """The difference that the filter called `name` made."""
    if before.table.height == after.table.height:
        return Removed(name, 0, 0, 0)
    return Removed(
        name,
        before.table.height - after.table.height,
        before.n_users - after.n_users,
        before.n_items - after.n_items,
    )


def drop_duplicates(coded: Coded, how: Duplicates) -> Coded:
    """Keep the first of equal interactions: of the same user, item and time (`exact`), or user and item (`pair`)."""
    if how == "none":
        return coded
    group = coded.table[USER].to_numpy().astype(np.int64)
    if how == "exact":
        # The table is in order of user and time, so each change of either begins a group.
        changes = (np.diff(group) != 0) | (np.diff(coded.table[ORDER].to_numpy()) != 0)
        group = np.concatenate([[0], np.cumsum(changes)])[: len(group)]
    key = group << 32 | coded.table[ITEM].to_numpy()
    at = np.argsort(key, kind="stable")
    first = np.ones(len(key), dtype=np.bool_)
    first[at[1:]] = key[at[1:]] != key[at[:-1]]
    return coded.keep(first)


def keep_items(coded: Coded, wanted: npt.NDArray[np.bool_]) -> Coded:
    """Keep the interactions whose item is wanted; `wanted` has an entry per item of `coded.items`."""
    return coded.keep(wanted[coded.table[ITEM].to_numpy()])


def k_core(coded: Coded, user: int, item: int) -> Coded:
    """Leave out users with fewer than `user` and items with fewer than `item` interactions, until none is left.

    The fixed point is unique: the largest set of interactions in which everyone has enough.
    """
    if user <= 1 and item <= 1:
        return coded
    users, items = coded.table[USER].to_numpy(), coded.table[ITEM].to_numpy()
    rows = np.arange(len(users), dtype=np.uint32)
    while True:
        enough = np.bincount(users, minlength=1)[users] >= user
        enough &= np.bincount(items, minlength=1)[items] >= item
        if enough.all():
            return coded.keep(rows)
        rows, users, items = rows[enough], users[enough], items[enough]


def min_length(coded: Coded, fewest: int) -> Coded:
    """Leave out users with fewer than `fewest` interactions, once: items may lose some of theirs."""
    if fewest <= 1:
        return coded
    users = coded.table[USER].to_numpy()
    return coded.keep(np.bincount(users, minlength=1)[users] >= fewest)
