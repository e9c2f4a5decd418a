"""The two views of a history that pre-training compares with the original (UniSRec, section 2.2.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def drop_items(histories: Ints, lengths: Ints, keep: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Histories with some items dropped, moved together, and their lengths.

    As published: every item moves to the place of the last kept one up to it, and where several meet the latest wins.
    So one item of a kept one and the dropped ones after it survives, the last; the first place is always kept.

    Args:
        histories: (B, L) items, right-padded with 0.
        lengths: (B,) from 1.
        keep: (B, L) the draws; those of the first place and of padding do not count.
    """
    steps = np.arange(histories.shape[1])
    inside = steps < lengths[:, None]
    keep = keep | ~inside | (steps == 0)
    places = np.cumsum(keep, axis=1) - 1
    survives = np.ones_like(keep)
    survives[:, :-1] = keep[:, 1:]
    survives &= inside
    dropped = np.zeros_like(histories)
    rows, columns = np.nonzero(survives)
    dropped[rows, places[rows, columns]] = histories[rows, columns]
    new_lengths = places[np.arange(len(histories)), lengths - 1] + 1
    return dropped[:, : new_lengths.max()], new_lengths


def drop_words(histories: Ints, lengths: Ints, drop: npt.NDArray[np.bool_], offset: int) -> Ints:
    """Histories in which some items are replaced by their twins whose texts have words dropped.

    Args:
        histories: (B, L) items, right-padded with 0.
        lengths: (B,).
        drop: (B, L) the draws; those of padding do not count.
        offset: what is added to an item's number to name its twin.
    """
    inside = np.arange(histories.shape[1]) < lengths[:, None]
    return histories + offset * (drop & inside)
