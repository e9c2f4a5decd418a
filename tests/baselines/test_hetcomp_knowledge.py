"""HetComp's knowledge: how near a student's lists are, who moves along a trajectory, and what is put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.baselines.hetcomp_parts.knowledge import Curriculum, importance, list_ndcg, target_lists


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(10, 80))
def test_list_ndcg_is_one_for_the_same_items_and_zero_for_others(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    lists = np.stack([generator.permutation(2 * k)[:k] + 1 for _ in range(3)]).astype(np.int32)
    shuffled = lists.copy()
    for row in shuffled:
        generator.shuffle(row[: min(50, k)])
    assert list_ndcg(shuffled, lists).tolist() == [1.0] * 3
    assert list_ndcg(lists + 2 * k, lists).tolist() == [0.0] * 3
    mixed = list_ndcg(np.roll(lists, 1, axis=0), lists)
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert (mixed == np.round(mixed, 4)).all()


def lists_of(*firsts: int, k: int = 10) -> np.ndarray:
    """(U, k) lists that begin at the given items."""
    return np.array([np.arange(first, first + k) for first in firsts], dtype=np.int32)


def test_a_user_moves_on_where_the_student_has_come_closer() -> None:
    curriculum = Curriculum([[lists_of(1, 1), lists_of(11, 11), lists_of(21, 21)]], alpha=1.05, period=10)
    curriculum.update(lists_of(8, 8), 10)
    assert curriculum.level.tolist() == [[0], [0]]
    curriculum.update(lists_of(9, 8), 20)  # the first user's list shares one item more
    assert curriculum.level.tolist() == [[1], [0]]
    assert not curriculum.finished


def test_a_user_who_has_arrived_moves_on() -> None:
    curriculum = Curriculum([[lists_of(1), lists_of(11)]], alpha=1.05, period=10)
    curriculum.update(lists_of(11), 10)
    assert curriculum.level.tolist() == [[0]]
    curriculum.update(lists_of(11), 20)  # both distances are zero
    assert curriculum.finished


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_levels_rise_by_one_at_most_and_end_at_the_last(seed: int) -> None:
    generator = np.random.default_rng(seed)
    draw = lambda: np.stack([generator.permutation(30)[:10] + 1 for _ in range(4)]).astype(np.int32)  # noqa: E731
    curriculum = Curriculum([[draw() for _ in range(3)], [draw()]], alpha=1.0, period=1)
    before = curriculum.level.clone()
    for epoch in range(1, 12):
        curriculum.update(draw(), epoch)
        change = curriculum.level - before
        assert set(change.flatten().tolist()) <= {0, 1}
        before = curriculum.level.clone()
    assert (before <= torch.tensor([2, 0])).all()
    assert torch.isfinite(curriculum.distance).all()


def test_importance_is_rank_and_steadiness() -> None:
    earlier, later = lists_of(1, k=3), np.array([[2, 1, 9]], dtype=np.int32)
    first, second = importance([earlier, later], n_items=10)
    np.testing.assert_allclose(first[0], np.exp(-np.arange(3) / 10) + 1.0, rtol=1e-6)
    # Item 2 went from place 1 to 0, item 1 from 0 to 1, item 9 from behind the end, 3, to 2: deviation 1/2 each.
    np.testing.assert_allclose(second[0], np.exp(-np.arange(3) / 10) + np.exp(-0.5 / 100), rtol=1e-6)


def test_what_ranks_from_a_hundred_is_of_no_importance() -> None:
    (found,) = importance([lists_of(1, k=110)], n_items=120)
    assert (found[0, :100] > 0).all()
    assert (found[0, 100:] == 0).all()


def test_target_lists_follow_each_user_along_the_trajectory() -> None:
    trajectory = [lists_of(1, 1), lists_of(21, 21)]
    values = importance(trajectory, 40)
    training = [np.array([3]), np.array([22])]
    found = target_lists([trajectory], [values], np.array([[0], [1]]), training, 40)
    assert found[0].tolist()[:9] == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert found[1].tolist()[:9] == [21, 23, 24, 25, 26, 27, 28, 29, 30]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 10**6))
def test_target_lists_are_those_of_a_stable_sort_whatever_is_held_at_once(users: int, held: int, seed: int) -> None:
    draw, n_items, k = np.random.default_rng(seed), 16, 10
    trajectories = [
        [np.stack([1 + draw.permutation(n_items)[:k] for _ in range(users)]).astype(np.int32) for _ in range(2)]
        for _ in range(2)
    ]
    # Few distinct values, so that many sums are equal.
    values = [[draw.integers(0, 2, (users, k)).astype(np.float32) for _ in range(2)] for _ in range(2)]
    level, training = draw.integers(0, 2, (users, 2)), [draw.permutation(n_items)[:3] + 1 for _ in range(users)]
    total = np.zeros((users, n_items + 1), dtype=np.float32)
    for teacher, user in np.ndindex(2, users):
        checkpoint = level[user, teacher]
        total[user, trajectories[teacher][checkpoint][user]] += values[teacher][checkpoint][user]
    for user in range(users):
        total[user, [0, *training[user]]] = -1.0
    expected = np.argsort(-total, axis=1, kind="stable")[:, :k]
    weights = importance(trajectories[0], n_items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckd.baselines.hetcomp_parts.knowledge.SCORES", held * 2 * (n_items + 1))
        assert np.array_equal(target_lists(trajectories, values, level, training, n_items), expected)
        for one, other in zip(weights, importance(trajectories[0], n_items), strict=True):
            assert np.array_equal(one, other)


def test_users_held_at_once_are_bounded_by_the_catalogue(monkeypatch) -> None:
    made: list[int] = []
    full = np.full
    monkeypatch.setattr(
        np, "full", lambda shape, *rest, **more: made.append(np.prod(shape)) or full(shape, *rest, **more)
    )
    monkeypatch.setattr("ckd.baselines.hetcomp_parts.knowledge.SCORES", 2000, raising=False)
    importance([lists_of(*range(1, 31))] * 2, n_items=100)
    assert made
    assert max(made) <= 2000
