"""Ranking metrics, all derived from the rank of each user's one target (paper 4.1.2).

With one relevant item, Recall@K is the hit rate, and NDCG@K is 1 / log2(rank + 1) inside the first K, since the ideal
list has a DCG of 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ckd.errors import ConfigError, DataError

CUTOFFS = (5, 10, 20, 50)


def recall(rank: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """(n,) 1 where the target is among the first `k`, from its rank (n,), counted from 1."""
    return (_checked(rank) <= _cutoff(k)).astype(np.float64)


def ndcg(rank: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """(n,) 1 / log2(rank + 1) where the target is among the first `k`, else 0."""
    ranks = _checked(rank)
    return np.where(ranks <= _cutoff(k), 1.0 / np.log2(ranks + 1.0), 0.0)


def reciprocal_rank(rank: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(n,) 1 / rank, without a cutoff."""
    return 1.0 / _checked(rank).astype(np.float64)


def per_user(metric: str, rank: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(n,) float64 values whose mean is the metric.

    Args:
        metric: `recall@K`, `ndcg@K` or `mrr`.
        rank: (n,) ranks of the targets, from 1.

    Raises:
        ConfigError: no metric of that name.
        DataError: no ranks, or a rank below 1.
    """
    if metric == "mrr":
        return reciprocal_rank(rank)
    found = re.fullmatch(r"(recall|ndcg)@([1-9]\d*)", metric)
    if not found:
        raise ConfigError(f"unknown metric {metric!r}. Known: recall@K, ndcg@K, mrr, with a whole number K from 1.")
    return (recall if found[1] == "recall" else ndcg)(rank, int(found[2]))


def ranking_metrics(rank: npt.ArrayLike, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """The mean over users of Recall@K, NDCG@K for each cutoff and of the reciprocal rank.

    Returns:
        `recall@K`, `ndcg@K` for every K, and `mrr`, all in [0, 1].

    Raises:
        DataError: no ranks, or a rank below 1.
    """
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in cutoffs]
    return {name: float(per_user(name, rank).mean()) for name in [*names, "mrr"]}


def _checked(rank: npt.ArrayLike) -> npt.NDArray[np.int64]:
    ranks = np.asarray(rank)
    if ranks.ndim != 1 or not len(ranks):
        raise DataError(f"ranks of shape {ranks.shape}: metrics need one rank for each of at least one user.")
    if not np.issubdtype(ranks.dtype, np.integer) or ranks.min() < 1:
        raise DataError(f"ranks of type {ranks.dtype} from {ranks.min()}: they must be whole numbers from 1.")
    return ranks.astype(np.int64, copy=False)


def _cutoff(k: int) -> int:
    if k < 1:
        raise ConfigError(f"cutoff {k}: must be at least 1.")
    return k
