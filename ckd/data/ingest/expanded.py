"""Instances that a benchmark wrote out one by one, put together again as one sequence per user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from ckd.data.domain import CONTEXT, SPLITS
from ckd.errors import DataError

TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class Row:
    """One written-out instance.

    Attributes:
        history: the items before, oldest first; of a long sequence the last `cap` of them.
        target: the item to predict.
        split: code of the instance's split, 0 train, 1 valid, 2 test.
        where: file and line, for messages.
    """

    history: tuple[int, ...]
    target: int
    split: int
    where: str


def merge(rows: list[Row], cap: int, user: str) -> tuple[list[int], list[int]]:
    """The sequence whose windows of at most `cap` items are the rows' histories, and its split codes.

    A history shorter than `cap` is the whole past, so its target's position is known. The longer ones follow one
    another, each overlapping with the end of what is there. Every row then is the instance at its position exactly;
    an item that is no row's target serves as context only, except the first, which leave-one-out counts as training
    and which is no instance for want of a history.

    Args:
        rows: all instances of one user, training before validation before test, each split in the order of its file.
        cap: the longest history that the source writes.
        user: raw id, for messages.

    Raises:
        DataError: the rows are not windows of one sequence; one line with file, line and user.
    """
    found = _Sequence(cap, user)
    for row in sorted((row for row in rows if len(row.history) < cap), key=lambda row: len(row.history)):
        found.place(row, 0)
    long = [row for row in rows if len(row.history) == cap]
    # Benchmarks write a user's training rows from the longest to the shortest or the other way round. The order
    # decides where windows repeat; without either order, the overlap does.
    backwards = long[::-1]
    orders = (sorted(backwards, key=lambda row: row.split), long)
    order = next((order for order in orders if found.is_continued_by(order)), None)
    for row in found.nearest_first(long) if order is None else order:
        found.append(row)
    return found.items, [TRAIN, *found.splits[1:]]


class _Sequence:
    """A user's sequence as far as it is known."""

    def __init__(self, cap: int, user: str) -> None:
        self.cap, self.user = cap, user
        self.items: list[int] = []
        self.splits: list[int] = []
        self.wheres: list[str] = []

    def place(self, row: Row, start: int) -> None:
        """Lay the row's window over the sequence from `start`; what lies there already must agree."""
        window = [*row.history, row.target]
        at = start + len(row.history)
        known = self.items[start : at + 1]
        if window[: len(known)] != known:
            self._refuse(row, self.wheres[start + next(i for i, item in enumerate(known) if item != window[i])])
        # Rows come from the shortest history to the longest: only another of the same length has a target here.
        if at < len(self.items):
            raise DataError(f"{row.where}: user {self.user!r} has the same history on {self.wheres[at]}; remove one.")
        new = window[len(known) :]
        self.items += new
        self.splits += [CONTEXT] * len(new)
        self.wheres += [row.where] * len(new)
        self.splits[at] = row.split

    def is_continued_by(self, order: list[Row]) -> bool:
        """Whether every row's history is the window right before its turn."""
        if not order:
            return True
        window = tuple(self.items[-self.cap :]) or order[0].history
        for row in order:
            if row.history != window:
                return False
            window = (*window[1:], row.target)
        return True

    def append(self, row: Row) -> None:
        """Place a full window where it overlaps most with the end."""
        overlap = self.overlap(row)
        if self.items and not overlap:
            self._refuse(row, self.wheres[-1])
        self.place(row, len(self.items) - overlap)

    def nearest_first(self, rows: list[Row]) -> Iterator[Row]:
        """The rows, always the first of those that overlap most with the end as it is by then."""
        left = list(rows)
        while left:
            if self.items:
                window = tuple(self.items[-self.cap :])
                row = next((row for row in left if row.history == window), None) or max(left, key=self.overlap)
            else:
                following = {(*row.history[1:], row.target) for row in left}
                row = next((row for row in left if row.history not in following), left[0])
            left.remove(row)
            yield row

    def overlap(self, row: Row) -> int:
        """How many items of the row's history lie at the end of the sequence; 0 where too few for certainty."""
        n = len(self.items)
        # Less than half a window may well be a coincidence, unless it is all there is.
        for size in range(min(self.cap, n), 0, -1):
            if size < self.cap / 2 and size < n:
                return 0
            if self.items[n - size :] == list(row.history[:size]):
                return size
        return 0

    def _refuse(self, row: Row, where: str) -> NoReturn:
        raise DataError(
            f"{row.where}: the history of user {self.user!r} does not continue the one on {where}, so the split cannot "
            "be put together as one sequence. Mend the row, or prepare the sequences without a split."
        )
