"""What each user has in the training part, for models that are taught user by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckd.data.domain import Domain, Instances


def user_histories(domain: Domain) -> Instances:
    """One instance for each user with a training part, which is its history; the targets are padding."""
    counts = np.bincount(domain.user_of[domain.training_part], minlength=domain.n_users)
    users = np.flatnonzero(counts)
    first = domain.indptr[users]
    stops = (first + counts[users]).astype(np.int64)
    return Instances(
        users=users.astype(np.int32),
        targets=np.zeros(len(users), dtype=np.int32),
        starts=np.maximum(first, stops - domain.history_cap).astype(np.int64),
        stops=stops,
    )


@dataclass(frozen=True)
class UserItems(Sequence[npt.NDArray[np.int32]]):
    """The items of every user; as a sequence, an array for each.

    Attributes:
        items: (m,) int32, those of one user after those of another.
        indptr: (n_users + 1,) int64 where each user's begin.
    """

    items: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, user: Any) -> Any:
        if not 0 <= user < len(self):
            raise IndexError(user)
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def cells(
        self, users: npt.NDArray[np.integer], width: int, first: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(p,) places of the users' items in a (B, width) matrix, counted row by row; (B + 1,) where each row's begin.

        Args:
            first: the item that the matrix has in column 0.
        """
        counts = self.indptr[users + 1] - self.indptr[users]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(np.arange(len(users)), counts)
        at = np.arange(bounds[-1]) + np.repeat(self.indptr[users] - bounds[:-1], counts)
        return rows * width + (self.items[at] - first), bounds


def training_items(domain: Domain) -> UserItems:
    """The distinct training items of each user, the latest first."""
    latest_first = np.flatnonzero(domain.training_part)[::-1]
    owners, items = domain.user_of[latest_first].astype(np.int64), domain.items[latest_first]
    _, at = np.unique(owners * (domain.n_items + 1) + items, return_index=True)
    at = at[np.lexsort((at, owners[at]))]
    counts = np.bincount(owners[at], minlength=domain.n_users)
    return UserItems(items[at], np.concatenate([[0], np.cumsum(counts)]))
