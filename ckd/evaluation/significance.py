"""Whether two runs differ: paired tests over users, on the per-user values of a metric.

The unit is a target of the split (one a user under leave-one-out). Runs are compared only where they ranked exactly
the same targets under the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from ckd.errors import ConfigError, DataError, did_you_mean
from ckd.evaluation.metrics import CUTOFFS, per_user
from ckd.evaluation.ranks import Ranks

Test = Literal["t", "wilcoxon", "bootstrap"]
TESTS: tuple[Test, ...] = ("t", "wilcoxon", "bootstrap")

#: Metrics that `compare` tests unless told otherwise.
METRICS = (*(f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS), "mrr")

RESAMPLES = 10_000
#: Numbers drawn at once by the bootstrap.
DRAWS = 4_000_000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of run a against run b on one metric.

    Attributes:
        test: `t`, `wilcoxon` or `bootstrap`.
        n: number of pairs.
        mean: the metric of a.
        other_mean: the metric of b.
        difference: mean of a - b.
        low, high: confidence interval of the mean difference: Student's t, or the bootstrap's percentiles.
        confidence: its coverage, such as 0.95.
        statistic: t; z of the signed-rank sum; or, for the bootstrap, the difference in bootstrap standard errors.
            Infinite, but for z, where every pair differs by the same amount.
        p_value: two-sided.
        effect_size: mean difference over the standard deviation of the differences (Cohen's d_z).
        wins, losses: pairs in which a is better, or worse.
    """

    test: Test
    n: int
    mean: float
    other_mean: float
    difference: float
    low: float
    high: float
    confidence: float
    statistic: float
    p_value: float
    effect_size: float
    wins: int
    losses: int

    @property
    def improvement(self) -> float:
        """The difference relative to b, infinite or NaN where b is 0."""
        if self.other_mean:
            return self.difference / self.other_mean
        return math.copysign(math.inf, self.difference) if self.difference else math.nan


def compare(
    a: Ranks | Sequence[Ranks],
    b: Ranks | Sequence[Ranks],
    metrics: Sequence[str] = METRICS,
    *,
    test: str = "t",
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare two runs, or two methods with several runs (seeds) each, target by target.

    A method's value for a target is its mean over the runs, so that users, not seeds, are the sample.

    Args:
        metrics: `recall@K`, `ndcg@K`, `mrr`.
        test: `t`, `wilcoxon` or `bootstrap`.
        seed: of the bootstrap's resamples.

    Returns:
        One comparison for each metric. Its p-values are not corrected for their number: see `holm`.

    Raises:
        DataError: the runs did not rank the same targets of the same domain under the same rules.
        ConfigError: unknown metric or test, or a confidence outside (0, 1).
    """
    ours, theirs = [a] if isinstance(a, Ranks) else list(a), [b] if isinstance(b, Ranks) else list(b)
    if not ours or not theirs:
        raise DataError("comparison: at least one run on each side.")
    for other in (*ours[1:], *theirs):
        _check_same_targets(ours[0], other)
    return {
        metric: paired_test(
            np.mean([per_user(metric, run.rank) for run in ours], axis=0),
            np.mean([per_user(metric, run.rank) for run in theirs], axis=0),
            test=test,
            confidence=confidence,
            seed=seed,
        )
        for metric in metrics
    }


def paired_test(
    a: npt.ArrayLike, b: npt.ArrayLike, *, test: str = "t", confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Test whether the mean of a - b is 0, for paired values (n,) and (n,).

    - `t`: Student's paired t-test.
    - `wilcoxon`: the signed-rank test in its normal approximation with the variance for ties; equal pairs are left out.
    - `bootstrap`: resampled pairs; p is the share of resamples whose mean lies as far from the observed one as that
      from 0, both counted with the observed sample itself.

    All agree that equal samples have p = 1.

    Raises:
        DataError: unequal lengths, fewer than two pairs, or a value that is not finite.
        ConfigError: unknown test, or a confidence outside (0, 1).
    """
    if test not in TESTS:
        raise ConfigError(f"unknown test {test!r}.{did_you_mean(test, TESTS)}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence {confidence}: must lie between 0 and 1.")
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or len(left) < 2:
        raise DataError(f"paired test of shapes {left.shape} and {right.shape}: two equal lengths from 2 are needed.")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise DataError("paired test: a value is not finite.")
    differences = left - right
    n, mean = len(differences), float(differences.mean())
    spread = float(differences.std(ddof=1)) if np.ptp(differences) else 0.0
    error = spread / math.sqrt(n)
    t = _ratio(mean, error)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    low, high = mean - reach, mean + reach
    if test == "t":
        statistic, p_value = t, 2 * float(stats.t.sf(abs(t), n - 1))
    elif test == "wilcoxon":
        statistic, p_value = _signed_rank(differences)
    else:
        statistic, p_value, low, high = _bootstrap(differences, confidence, seed)
    return Comparison(
        test=TESTS[TESTS.index(test)],
        n=n,
        mean=float(left.mean()),
        other_mean=float(right.mean()),
        difference=mean,
        low=low,
        high=high,
        confidence=confidence,
        statistic=statistic,
        p_value=min(p_value, 1.0),
        effect_size=_ratio(mean, spread),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by Holm's step-down method, in the order given.

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at alpha, whatever the
    dependence between the tests (Holm, 1979).

    Raises:
        DataError: a value is no probability.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"p-values {[float(p) for p in values if not 0 <= p <= 1]}: must lie between 0 and 1.")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def _ratio(value: float, scale: float) -> float:
    """value / scale; 0 / 0 is 0, and anything else over 0 is infinite."""
    if scale:
        return value / scale
    return math.copysign(math.inf, value) if value else 0.0


def _signed_rank(differences: Values) -> tuple[float, float]:
    """z and two-sided p of the signed-rank sum. Its exact variance given the magnitudes is a quarter of sum(rank^2)."""
    nonzero = differences[differences != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    z = _ratio(float((np.sign(nonzero) * ranks).sum()), math.sqrt(float((ranks**2).sum())))
    return z, 2 * float(stats.norm.sf(abs(z)))


def _bootstrap(differences: Values, confidence: float, seed: int) -> tuple[float, float, float, float]:
    """Difference in standard errors, p, and the percentile interval, from resampled pairs."""
    generator = np.random.default_rng(seed)
    n = len(differences)
    step = max(1, DRAWS // n)
    means = np.concatenate(
        [
            differences[generator.integers(n, size=(min(step, RESAMPLES - done), n), dtype=np.int32)].mean(axis=1)
            for done in range(0, RESAMPLES, step)
        ]
    )
    observed = float(differences.mean())
    # A resample that reproduces the sample must count, whatever the order its values were added in.
    slack = 1e-12 * float(np.abs(differences).max())
    extreme = int((np.abs(means - observed) >= abs(observed) - slack).sum())
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    error = float(means.std()) if np.ptp(differences) else 0.0  # of equal numbers std is a rounding, and not 0
    return _ratio(observed, error), (1 + extreme) / (1 + RESAMPLES), float(low), float(high)


def _check_same_targets(a: Ranks, b: Ranks) -> None:
    """Refuse runs that did not rank the same targets of the same domain under the same rules."""
    names = [f"{run.model or 'unnamed'} on {run.domain}" for run in (a, b)]
    for name in ("fingerprint", "split", "mask_history", "n_items"):
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours != theirs:
            raise DataError(f"{names[0]} has {name} {ours}, {names[1]} has {theirs}: only equal ones compare.")
    ours_pairs, theirs_pairs = (list(zip(r.raw_id.to_list(), r.target.tolist(), strict=True)) for r in (a, b))
    if ours_pairs == theirs_pairs:
        return
    missing, extra = sorted(set(ours_pairs) - set(theirs_pairs)), sorted(set(theirs_pairs) - set(ours_pairs))
    examples = ", ".join(f"{user!r}" for user, _ in [*missing, *extra][:3]) or "none, only their order differs"
    raise DataError(
        f"{names[0]} ranks {len(a)} targets, {names[1]} ranks {len(b)}: {len(missing)} only in the first, "
        f"{len(extra)} only in the second (users {examples}). Evaluate both on the same targets."
    )
