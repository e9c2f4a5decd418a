"""HetComp's dynamic knowledge construction: how far along its teachers' trajectories each user's target is.

Shapes: U users, K listed items, M teachers. Lists hold items from 1, best first; a user without any has zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ckd.baselines.hetcomp_parts.rankings import SCORES, first_columns

Lists = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

#: Places of a list that count when two are compared.
COMPARED = 50

#: The threshold falls by this factor with every update.
DECAY = 0.995

#: Users that are compared, or whose target is made, at once; fewer where the catalogue is large.
BLOCK = 1024

#: Places over which importance falls by a factor of e.
RANK_SCALE = 10.0

#: Deviation of ranks over which consistency falls by a factor of e.
DEVIATION_SCALE = 100.0

#: Ranks from here on are of no importance.
LAST_RANK = 100


def list_ndcg(student: Lists, teacher: Lists) -> Floats:
    """(U,) NDCG@50 of the student's list with the teacher's first 50 items as relevant, rounded to four digits.

    The gain of a relevant item at place t, from 0, is (2^exp(-t/10) - 1) / log2(t + 2).

    Args:
        student: (U, >= k) the student's items without training items, k = min(50, K).
        teacher: (U, K).
    """
    k = min(COMPARED, teacher.shape[1])
    place = np.arange(k)
    gain = (2.0 ** np.exp(-place / RANK_SCALE) - 1.0) / np.log2(place + 2.0)
    found = np.empty(len(student))
    for start in range(0, len(student), BLOCK):
        rows = slice(start, start + BLOCK)
        hits = (student[rows, :k, None] == teacher[rows, None, :k]).any(2)
        found[rows] = (hits * gain).sum(1) / gain.sum()
    return np.round(found, 4)


class Curriculum(nn.Module):
    """At which checkpoint of each teacher every user is; a module, so that checkpoints hold it.

    A user moves on to a teacher's next checkpoint when the student's list has come closer to that checkpoint's list by
    more than a threshold, which falls: d0 / d > alpha * 0.995^(epoch // period), where d = 1 - NDCG@50 and d0 is d at
    the time the present checkpoint was entered. As in the published program a user also moves on when d has grown.
    Two of its slips are mended: a distance of zero, which it divides by, counts as arrived; and its update looks at
    the new checkpoints through shared memory, here it reads the old ones and then writes.

    Args:
        trajectories: for each teacher the lists (U, K) of its checkpoints, earliest first.
        alpha: the first threshold.
        period: epochs between updates.
    """

    level: torch.Tensor
    distance: torch.Tensor

    def __init__(self, trajectories: Sequence[Sequence[Lists]], alpha: float, period: int) -> None:
        super().__init__()
        self.trajectories = trajectories
        self.alpha = alpha
        self.period = period
        self.last = torch.tensor([len(lists) - 1 for lists in trajectories])
        n_users = len(trajectories[0][0])
        self.register_buffer("level", torch.zeros(n_users, len(trajectories), dtype=torch.int64))
        self.register_buffer("distance", torch.full((len(trajectories), n_users), torch.nan, dtype=torch.float64))

    @property
    def finished(self) -> bool:
        """Whether every user is at the last checkpoint of every teacher."""
        return bool((self.level == self.last).all())

    def update(self, student: Lists, epoch: int) -> None:
        """Move users on; the first call only measures.

        Args:
            student: (U, >= 50) the student's present list without training items.
            epoch: of the update, a multiple of the period.
        """
        threshold = self.alpha * DECAY ** (epoch // self.period)
        for teacher, lists in enumerate(self.trajectories):
            # (V, U) distance to every checkpoint: an advance needs the one after the next as well.
            to = 1.0 - np.stack([list_ndcg(student, each) for each in lists])
            level, entered = self.level[:, teacher].numpy(), self.distance[teacher].numpy()
            last, users = len(lists) - 1, np.arange(len(level))
            following = to[np.minimum(level + 1, last), users]
            fresh = np.isnan(entered)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(following == 0.0, np.inf, entered / following)
            advance = ~fresh & (level < last) & ((ratio > threshold) | (ratio < 1.0))
            level = level + advance
            entered = np.where(fresh | advance, to[np.minimum(level + 1, last), users], entered)
            self.level[:, teacher] = torch.from_numpy(level)
            self.distance[teacher] = torch.from_numpy(entered)


def importance(lists: Sequence[Lists], n_items: int) -> list[npt.NDArray[np.float32]]:
    """For each checkpoint of one teacher, (U, K) how much each listed item counts.

    exp(-rank / 10) + exp(-std / 100), std the deviation of the item's ranks over the checkpoints so far, an unlisted
    item ranking behind the list's end; ranks from 100 count nothing. HetComp's program reads a precomputed ensemble
    importance: this one is inferred from the consensus score of the same author's ConCF (WWW 2022).

    Args:
        lists: (U, K) of each checkpoint, earliest first.
        n_items: number of items without padding.
    """
    n_users, k = lists[0].shape
    found = [np.zeros((n_users, k), dtype=np.float32) for _ in lists]
    block = _block(len(lists) * (n_items + 1))
    for start in range(0, n_users, block):
        rows = slice(start, min(start + block, n_users))
        count = rows.stop - start
        ranks = np.full((len(lists), count, n_items + 1), k, dtype=np.int32)
        for table, each in zip(ranks, lists, strict=True):
            np.put_along_axis(table, each[rows].astype(np.int64), np.arange(k, dtype=np.int32)[None], axis=1)
        for checkpoint, each in enumerate(lists):
            at = np.broadcast_to(each[rows].astype(np.int64), (checkpoint + 1, count, k))
            deviation = np.take_along_axis(ranks[: checkpoint + 1], at, axis=2).std(axis=0)
            rank = np.arange(k)
            value = np.exp(-rank / RANK_SCALE) + np.exp(-deviation / DEVIATION_SCALE)
            found[checkpoint][rows] = np.where(rank < LAST_RANK, value, 0.0)
    return found


def target_lists(
    trajectories: Sequence[Sequence[Lists]],
    importances: Sequence[Sequence[npt.NDArray[np.float32]]],
    level: npt.NDArray[np.int64],
    training: Sequence[npt.NDArray[np.integer]],
    n_items: int,
) -> Lists:
    """(U, K) the items with the greatest sum of importance over the teachers, at each user's checkpoints.

    Training items are left out; equal items go by their number.

    Args:
        trajectories: for each teacher the lists (U, K) of its checkpoints.
        importances: the same for `importance`.
        level: (U, M) checkpoint of each teacher.
        training: each user's training items.
        n_items: number of items without padding.
    """
    n_users, k = trajectories[0][0].shape
    found = np.zeros((n_users, k), dtype=np.int32)
    block = _block(n_items + 1)
    for start in range(0, n_users, block):
        users = np.arange(start, min(start + block, n_users))
        rows = np.arange(len(users))[:, None]
        total = np.zeros((len(users), n_items + 1), dtype=np.float32)
        for teacher, (lists, values) in enumerate(zip(trajectories, importances, strict=True)):
            for checkpoint in np.unique(level[users, teacher]):
                chosen = level[users, teacher] == checkpoint
                at = (rows[chosen], lists[checkpoint][users[chosen]])
                total[at] += values[checkpoint][users[chosen]]
        for row, user in enumerate(users):
            total[row, training[user]] = -1.0
        total[:, 0] = -1.0
        found[users] = first_columns(torch.from_numpy(total), k).numpy()
    return found


def _block(width: int) -> int:
    """How many users' rows of so many numbers are held at once."""
    return max(1, min(BLOCK, SCORES // width))
