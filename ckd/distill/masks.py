"""Which in-batch columns count as negatives of which row: the same rule in numpy and in torch.

Column j is the target of row j. Row i keeps its own column i, and the first column of every other item, except items
that are positives of row i's user elsewhere in this batch. So a row holds each item at most once, and no positive of
its user but its own target.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def in_batch_mask(users: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """(T, T) True where column j counts for row i.

    Args:
        users: (T,) user of each instance.
        targets: (T,) item of each instance.

    Raises:
        ValueError: not two vectors of one length.
    """
    _check(users.shape, targets.shape)
    distinct_users, user = np.unique(users, return_inverse=True)
    items, first, item = np.unique(targets, return_index=True, return_inverse=True)
    # Users by items: False where the item is a positive of the user.
    allowed = np.ones((len(distinct_users), len(items)), dtype=np.bool_)
    allowed[user, item] = False
    # Only an item's first column can count for others than its own row.
    mask = np.zeros((len(users), len(users)), dtype=np.bool_)
    mask[:, first] = allowed[user]
    np.fill_diagonal(mask, True)
    return mask


def in_batch_mask_torch(users: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(T, T) bool, as `in_batch_mask`, on the tensors' device and without waiting for it.

    Args:
        users: (T,) integer user of each instance.
        targets: (T,) integer item of each instance.

    Raises:
        ValueError: not two vectors of one length.
    """
    _check(tuple(users.shape), tuple(targets.shape))
    user, _ = _dense(users)
    item, first = _dense(targets)
    # T by T although there may be fewer users and items: a shape that depends on values would stall a GPU.
    allowed = torch.ones(len(users), len(users), dtype=torch.bool, device=users.device)
    allowed[user, item] = torch.zeros((), dtype=torch.bool, device=users.device)
    mask = allowed[user][:, item] & first
    mask.diagonal().fill_(True)
    return mask


def catalogue_mask(
    row_users: torch.Tensor, row_targets: torch.Tensor, users: torch.Tensor, targets: torch.Tensor, columns: int
) -> torch.Tensor:
    """(r, columns) True where item j counts for row i: every item but padding and the user's other positives here.

    The rule of `in_batch_mask` with the whole catalogue for columns; nothing waits for the device.

    Args:
        row_users: (r,) user of each row.
        row_targets: (r,) item of each row.
        users: (T,) user of each instance of the batch.
        targets: (T,) item of each instance of the batch.
        columns: n_items + 1.
    """
    other = (row_users[:, None] == users) & (row_targets[:, None] != targets)
    mask = torch.ones(len(row_users), columns, dtype=torch.bool, device=users.device)
    # Whatever is no other positive writes to padding's column, which never counts.
    return mask.scatter_(1, torch.where(other, targets, 0), False)


def _dense(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers 0, 1, ... in place of the distinct values, and where each value occurs first; no data-dependent shape."""
    ordered, order = torch.sort(values, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    numbers = torch.empty_like(order).scatter_(0, order, new.cumsum(0) - 1)
    first = torch.empty_like(new).scatter_(0, order, new)
    return numbers, first


def _check(users: tuple[int, ...], targets: tuple[int, ...]) -> None:
    if len(users) != 1 or users != targets:
        raise ValueError(f"users and targets must be vectors of one length, got shapes {users} and {targets}.")
