"""The curriculum: samples in buckets of rising difficulty, and the stages that open them (paper 3.4.2, Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples
from ckd.errors import DataError

#: Stage of the random epochs over the full data, and bucket of a batch that was composed over several buckets.
FULL = 0

#: Percentiles that describe a bucket.
PERCENTILES = (10, 25, 50, 75, 90)


def assign_buckets(difficulty: npt.NDArray[np.float64], n_buckets: int) -> npt.NDArray[np.uint32]:
    """The bucket of each sample, 1 the easiest (Alg. 1, lines 1 and 2).

    Ascending difficulty, ties by sample id; sizes are equal within one, larger buckets first, so that with fewer
    samples than buckets it is the last buckets that are empty and no stage is.

    Args:
        difficulty: (n,) float64.
        n_buckets: B.

    Returns:
        (n,) uint32 in 1..B.

    Raises:
        DataError: a difficulty is not finite.
    """
    if not np.isfinite(difficulty).all():
        bad = int(np.flatnonzero(~np.isfinite(difficulty))[0])
        raise DataError(f"the difficulty of sample {bad} is {difficulty[bad]}: a measure must give finite numbers.")
    sizes = np.full(n_buckets, len(difficulty) // n_buckets)
    sizes[: len(difficulty) % n_buckets] += 1
    buckets = np.empty(len(difficulty), dtype=np.uint32)
    buckets[np.argsort(difficulty, kind="stable")] = np.repeat(np.arange(1, n_buckets + 1), sizes)
    return buckets


def stage_of(epoch: int, n_buckets: int, epochs_per_stage: int) -> int:
    """The stage r in 1..B that an epoch belongs to, or `FULL` after the last one and without a curriculum (B = 1)."""
    stage = epoch // epochs_per_stage + 1
    return stage if n_buckets > 1 and stage <= n_buckets else FULL


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles (10, 25, 50, 75, 90) of one quantity over a bucket's samples."""

    mean: float
    percentiles: tuple[float, ...]

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Spread:
        """The spread of at least one value; percentiles are values that occur, the lower one between two."""
        ordered = np.sort(values).astype(np.float64)
        # A running sum adds in one fixed order; numpy's own sum is free to choose its order by machine.
        mean = float(np.cumsum(ordered)[-1] / len(ordered))
        return cls(mean, tuple(float(ordered[(len(ordered) - 1) * p // 100]) for p in PERCENTILES))


@dataclass(frozen=True)
class Bucket:
    """What a bucket holds.

    Attributes:
        samples: number of sequence samples.
        instances: number of training instances.
        difficulty: as the plan's measure has it; None without a curriculum.
        length: items in a sample.
        popularity: mean popularity of a sample's items, in [0, 1].
    """

    samples: int
    instances: int
    difficulty: Spread | None
    length: Spread
    popularity: Spread

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Bucket:
        """The bucket that `dataclasses.asdict` turned into JSON."""
        spreads = {
            name: value[name] and Spread(value[name]["mean"], tuple(value[name]["percentiles"]))
            for name in ("difficulty", "length", "popularity")
        }
        return cls(samples=value["samples"], instances=value["instances"], **spreads)


def describe_buckets(
    samples: Samples,
    difficulty: npt.NDArray[np.float64] | None,
    buckets: npt.NDArray[np.uint32],
    n_buckets: int,
) -> tuple[Bucket, ...]:
    """What each of the buckets 1..B holds, empty ones left out (they are the last)."""
    counts = np.diff(samples.indptr)
    order = np.argsort(buckets, kind="stable")
    borders = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=n_buckets + 1)[1:])])
    described = []
    for start, stop in pairwise(borders):
        chosen = order[start:stop]
        if len(chosen):
            described.append(
                Bucket(
                    samples=len(chosen),
                    instances=int(counts[chosen].sum()),
                    difficulty=None if difficulty is None else Spread.of(difficulty[chosen]),
                    length=Spread.of(samples.lengths[chosen]),
                    popularity=Spread.of(samples.popularity[chosen]),
                )
            )
    return tuple(described)
