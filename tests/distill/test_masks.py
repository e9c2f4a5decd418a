"""In-batch masks against the rule, spelt out pair by pair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.distill.masks import in_batch_mask, in_batch_mask_torch

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=30)
properties = settings(max_examples=150, deadline=None)


def naive(users: list[int], targets: list[int]) -> npt.NDArray[np.bool_]:
    """The rule for one pair after the other."""
    n = len(users)
    mask = np.zeros((n, n), dtype=bool)
    for i in range(n):
        positives = {targets[k] for k in range(n) if users[k] == users[i]}
        for j in range(n):
            first = targets[j] not in targets[:j]
            mask[i, j] = j == i or (first and targets[j] not in positives)
    return mask


@properties
@given(pairs)
def test_masks_follow_the_rule(batch: list[tuple[int, int]]) -> None:
    users, targets = [u for u, _ in batch], [t for _, t in batch]
    expected = naive(users, targets)
    assert np.array_equal(in_batch_mask(np.array(users), np.array(targets)), expected)
    found = in_batch_mask_torch(torch.tensor(users), torch.tensor(targets))
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), expected)


@properties
@given(pairs)
def test_rows_keep_their_own_column_and_every_other_item_once(batch: list[tuple[int, int]]) -> None:
    users, targets = np.array(batch).T
    mask = in_batch_mask(users, targets)
    assert mask.diagonal().all()
    for i, row in enumerate(mask):
        kept = targets[row].tolist()
        assert len(kept) == len(set(kept))
        own = set(targets[users == users[i]].tolist())
        assert set(kept) == (set(targets.tolist()) - own) | {int(targets[i])}


def test_own_target_that_another_user_has_too_keeps_its_own_column() -> None:
    users, targets = np.array([0, 1, 2]), np.array([5, 5, 6])
    expected = [[True, False, True], [False, True, True], [True, False, True]]
    assert in_batch_mask(users, targets).tolist() == expected


def test_other_positives_of_the_user_are_no_negatives() -> None:
    users, targets = np.array([0, 0, 1]), np.array([5, 6, 7])
    assert in_batch_mask(users, targets).tolist() == [[True, False, True], [False, True, True], [True, True, True]]


@pytest.mark.parametrize(("users", "targets"), [([1, 2], [1]), ([[1], [2]], [[1], [2]])])
def test_other_shapes_are_refused(users: list[int], targets: list[int]) -> None:
    with pytest.raises(ValueError, match="vectors of one length"):
        in_batch_mask(np.array(users), np.array(targets))
    with pytest.raises(ValueError, match="vectors of one length"):
        in_batch_mask_torch(torch.tensor(users), torch.tensor(targets))
