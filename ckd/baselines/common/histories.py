"""What each user has in the training part, for models that are taught user by user."""

from __future__ import annotations

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


def training_items(domain: Domain) -> list[npt.NDArray[np.int32]]:
    """The distinct training items of each user, the latest first."""
    found = []
    for first, last in zip(domain.indptr, domain.indptr[1:], strict=False):
        part = domain.items[first:last][domain.training_part[first:last]][::-1]
        _, at = np.unique(part, return_index=True)
        found.append(part[np.sort(at)])
    return found
