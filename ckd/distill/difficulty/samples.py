"""What a difficulty measure is given: the sequence samples, and what teachers' scores say about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ckd.data.domain import Domain, Instances
from ckd.errors import ConfigError, StoreError


@dataclass(frozen=True)
class TeacherScores:
    """What a score store says about every training instance.

    Attributes:
        loss: (n_instances,) float64, -log of the target's in-batch probability, mean over the teachers; NaN where the
            store has no such instance.
        disagreement: (n_instances,) float64, squared distance between two teachers' in-batch distributions, mean over
            the pairs; NaN likewise, and everywhere with fewer than two teachers.
        source: fingerprint of what the numbers were read from.
    """

    loss: npt.NDArray[np.float64]
    disagreement: npt.NDArray[np.float64]
    source: str


@dataclass(frozen=True)
class Samples:
    """The sequence samples S that a curriculum sorts (paper 3.4.1).

    A sample is what a model sees: a history, capped, and the target after it. In layout `user` it is the sample of the
    user's last training instance, which is the user's training sequence as long as that is no longer than the cap.

    Attributes:
        domain: where the items are.
        starts: (n,) int64 position of a sample's first item in `domain.items`.
        stops: (n,) int64 position one past its last item.
        indptr: (n + 1,) int64; the training instances of sample s are `indptr[s]` up to `indptr[s + 1]`.
        alpha: weight of the popularity in Eq. (1).
        teachers: scores of the training instances, where a store was given.
    """

    domain: Domain
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    indptr: npt.NDArray[np.int64]
    alpha: float = 1.0
    teachers: TeacherScores | None = None

    @classmethod
    def of(
        cls,
        domain: Domain,
        instances: Instances,
        layout: Literal["user", "instance"],
        alpha: float = 1.0,
        teachers: TeacherScores | None = None,
    ) -> Samples:
        """The samples of a domain's training instances: one per user, or one per instance."""
        n = len(instances)
        if layout == "instance":
            indptr = np.arange(n + 1, dtype=np.int64)
        else:
            indptr = np.concatenate([[0], np.flatnonzero(np.diff(instances.users)) + 1, [n]]).astype(np.int64)
        last = indptr[1:] - 1
        return cls(domain, instances.starts[last], instances.stops[last] + 1, indptr, alpha, teachers)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) N of Eq. (1), the number of items in each sample."""
        return self.stops - self.starts

    @cached_property
    def popularity(self) -> npt.NDArray[np.float64]:
        """(n,) mean popularity of each sample's items, where the most popular item of the training part has 1."""
        counts = self.domain.popularity
        # Integer sums are exact, so that no order of summation can move a sample across a bucket's border.
        before = np.concatenate([[0], np.cumsum(counts[self.domain.items])])
        sums = before[self.stops] - before[self.starts]
        return sums / (self.lengths * int(counts.max()))

    def mean_over_instances(self, values: npt.NDArray[np.float64], what: str) -> npt.NDArray[np.float64]:
        """(n,) mean of an instance's value (n_instances,) over each sample's instances.

        Raises:
            StoreError: values of another number of instances, or instances without a value.
        """
        if len(values) != self.indptr[-1]:
            raise StoreError(
                f"the scores cover {len(values)} training instances, {self.domain.name} has {self.indptr[-1]}: "
                "score this domain again."
            )
        missing = int(np.isnan(values).sum())
        if missing:
            raise StoreError(
                f"{missing} of {len(values)} training instances have no {what}: score a plan that visits all of them."
            )
        counts = np.diff(self.indptr)
        # bincount adds one after the other, in every version and on every machine.
        owners = np.repeat(np.arange(len(self)), counts)
        return np.bincount(owners, weights=values, minlength=len(self)) / counts


class Difficulty(Protocol):
    """Measures how hard each sample is to learn from."""

    def __call__(self, samples: Samples) -> npt.NDArray[np.float64] | None:
        """(n,) finite numbers, larger for harder samples; None for no order at all, hence no curriculum."""
        ...


M = TypeVar("M", bound=Difficulty)


def by_teachers(measure: M) -> M:
    """Marks a measure that sorts by teachers' scores: a plan with it needs them, and any other refuses them."""
    measure.by_teachers = True  # type: ignore[attr-defined]
    return measure


def require_teachers(samples: Samples, measure: str) -> TeacherScores:
    """The teachers' scores.

    Raises:
        ConfigError: the plan was given none.
    """
    if samples.teachers is None:
        raise ConfigError(
            f"plan.difficulty={measure!r}: needs teachers' scores of {samples.domain.name}; score a plan with "
            "plan.difficulty=none first and name it with --scored-plan."
        )
    return samples.teachers
