from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.errors import ConfigError, DataError
from ckd.evaluation.metrics import CUTOFFS, ndcg, per_user, ranking_metrics, recall, reciprocal_rank

RANKS = st.lists(st.integers(1, 300), min_size=1, max_size=40).map(np.array)


def test_the_metrics_of_known_ranks() -> None:
    rank = np.array([1, 2, 5, 6])
    assert recall(rank, 5).tolist() == [1, 1, 1, 0]
    assert ndcg(rank, 5).tolist() == [1, 1 / math.log2(3), 1 / math.log2(6), 0]
    assert reciprocal_rank(rank).tolist() == [1, 0.5, 0.2, 1 / 6]


@given(RANKS, st.integers(1, 320))
@settings(max_examples=50, deadline=None)
def test_they_equal_the_definition_over_a_ranked_list(rank: np.ndarray, k: int) -> None:
    """DCG over a binary relevance list, divided by the DCG of the ideal list."""
    for r, hit, gain in zip(rank, recall(rank, k), ndcg(rank, k), strict=True):
        relevance = np.arange(1, 321) == r
        discount = 1 / np.log2(np.arange(2, 322))
        assert hit == relevance[:k].sum() / relevance.sum()
        ideal = (np.sort(relevance)[::-1] * discount)[:k].sum()
        assert gain == pytest.approx((relevance * discount)[:k].sum() / ideal, abs=1e-15)


@given(RANKS)
@settings(max_examples=50, deadline=None)
def test_means_are_ordered_and_between_0_and_1(rank: np.ndarray) -> None:
    found = ranking_metrics(rank)
    assert list(found) == [*(f"{m}@{k}" for m in ("recall", "ndcg") for k in CUTOFFS), "mrr"]
    for name, value in found.items():
        assert 0 <= value <= 1
        assert value == pytest.approx(per_user(name, rank).mean())
    for metric in ("recall", "ndcg"):
        values = [found[f"{metric}@{k}"] for k in CUTOFFS]
        assert values == sorted(values)
    assert all(found[f"ndcg@{k}"] <= found[f"recall@{k}"] for k in CUTOFFS)


def test_a_perfect_ranking_scores_1() -> None:
    assert set(ranking_metrics(np.ones(7, dtype=int)).values()) == {1.0}


def test_values_are_float64_whatever_the_type_of_the_ranks() -> None:
    rank = np.array([3, 900], dtype=np.int32)
    for metric in ("recall@5", "ndcg@5", "mrr"):
        assert per_user(metric, rank).dtype == np.float64


@pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "ndcg@-1", "ndcg@1.5", "NDCG@10", "precision@10", ""])
def test_an_unknown_metric_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown metric") as caught:
        per_user(name, np.array([1]))
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("bad", [[], [0], [3, -1], [1.5], [[1, 2]]])
def test_what_is_no_rank_is_refused(bad: list[float]) -> None:
    with pytest.raises(DataError, match="ranks"):
        ranking_metrics(np.array(bad))


def test_a_cutoff_below_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="cutoff 0"):
        recall([1], 0)
