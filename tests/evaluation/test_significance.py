from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ckd.errors import ConfigError, DataError
from ckd.evaluation.metrics import per_user
from ckd.evaluation.ranks import Ranks
from ckd.evaluation.significance import METRICS, RESAMPLES, TESTS, compare, holm, paired_test

SEEDS = st.integers(0, 2**32 - 1)


def make_ranks(rank: list[int] | np.ndarray, **changes: object) -> Ranks:
    n = len(rank)
    ranks = Ranks(
        user=np.arange(n),
        raw_id=pl.Series([f"u{i}" for i in range(n)]),
        target=np.arange(1, n + 1),
        rank=np.asarray(rank),
        history_length=np.full(n, 3),
        popularity=np.full(n, 2),
        n_items=100,
        domain="toys",
        fingerprint="abc",
        split="test",
        model="run",
        mask_history=False,
    )
    return replace(ranks, **changes)  # type: ignore[arg-type]


@given(SEEDS, st.integers(2, 60), st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=40, deadline=None)
def test_t_equals_scipy(seed: int, n: int, confidence: float) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=n), generator.normal(0.3, size=n)
    found = paired_test(a, b, confidence=confidence)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(confidence)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-8, abs=1e-12)
    assert found.effect_size == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    assert found.wins + found.losses == n


@given(SEEDS, st.integers(60, 120), st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_wilcoxon_equals_scipy_with_ties_and_zeros(seed: int, n: int, values: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(values, size=n), generator.integers(values, size=n)
    found = paired_test(a, b, test="wilcoxon")
    expected = stats.wilcoxon(a, b, zero_method="wilcox", correction=False, method="approx")
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert abs(found.statistic) == pytest.approx(abs(expected.zstatistic), rel=1e-9)


def test_the_bootstrap_agrees_with_t_on_a_large_sample() -> None:
    generator = np.random.default_rng(3)
    a = generator.normal(size=2000)
    b = a + generator.normal(0.05, 1, size=2000)
    t, bootstrap = paired_test(a, b), paired_test(a, b, test="bootstrap")
    assert bootstrap.p_value == pytest.approx(t.p_value, abs=0.01)
    assert (bootstrap.low, bootstrap.high) == pytest.approx((t.low, t.high), abs=0.005)
    assert bootstrap.statistic == pytest.approx(t.statistic, rel=0.05)


def test_no_number_of_resamples_makes_a_bootstrap_certain() -> None:
    found = paired_test(np.arange(50.0) + 10, np.zeros(50), test="bootstrap")
    assert found.p_value == 1 / (RESAMPLES + 1)


def test_the_bootstrap_follows_its_seed() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert paired_test(a, b, test="bootstrap", seed=1) == paired_test(a, b, test="bootstrap", seed=1)
    assert paired_test(a, b, test="bootstrap", seed=1) != paired_test(a, b, test="bootstrap", seed=2)


@pytest.mark.parametrize("test", TESTS)
def test_equal_runs_do_not_differ(test: str) -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = paired_test(values, values, test=test)
    assert (found.p_value, found.statistic, found.difference, found.effect_size) == (1, 0, 0, 0)
    assert found.low == found.high == 0
    assert found.wins == found.losses == 0


@pytest.mark.parametrize("test", TESTS)
def test_swapping_the_runs_flips_the_sign_and_keeps_p(test: str) -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 80))
    one, other = paired_test(a, b, test=test), paired_test(b, a, test=test)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.statistic == pytest.approx(-other.statistic)
    assert one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert (one.wins, one.losses) == (other.losses, other.wins)


@pytest.mark.parametrize("test", TESTS)
def test_a_clear_difference_is_found(test: str) -> None:
    generator = np.random.default_rng(1)
    b = generator.normal(size=200)
    found = paired_test(b + generator.normal(0.5, 0.5, size=200), b, test=test)
    assert found.p_value < 1e-3
    assert 0 < found.low < found.difference < found.high


def test_a_constant_difference_is_certain() -> None:
    found = paired_test([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert (found.p_value, found.statistic, found.low, found.high) == (0, math.inf, 0.5, 0.5)


@pytest.mark.parametrize(
    ("test", "statistic"), [("t", -math.inf), ("wilcoxon", -math.sqrt(30)), ("bootstrap", -math.inf)]
)
def test_the_statistic_of_a_constant_difference(test: str, statistic: float) -> None:
    """Of thirty times a tenth neither the mean nor the standard deviation is exact."""
    found = paired_test([0.0] * 30, [0.1] * 30, test=test)
    assert found.statistic == pytest.approx(statistic)
    assert found.effect_size == -math.inf


def test_compare_takes_the_per_user_values_of_each_metric() -> None:
    generator = np.random.default_rng(5)
    a, b = (make_ranks(generator.integers(1, 60, 200)) for _ in range(2))
    found = compare(a, b)
    assert list(found) == list(METRICS)
    for metric, comparison in found.items():
        assert comparison == paired_test(per_user(metric, a.rank), per_user(metric, b.rank))
        assert comparison.mean == pytest.approx(per_user(metric, a.rank).mean())
        assert comparison.improvement == pytest.approx(comparison.mean / comparison.other_mean - 1)


def test_several_runs_are_averaged_user_by_user() -> None:
    a, b, c = make_ranks([1, 10]), make_ranks([2, 1]), make_ranks([4, 4])
    found = compare([a, b], c, ["mrr"])["mrr"]
    assert found == paired_test([0.75, 0.55], [0.25, 0.25])
    assert found.n == 2
    assert compare(c, [a, b], ["mrr"])["mrr"] == paired_test([0.25, 0.25], [0.75, 0.55])


def test_runs_of_one_side_must_match_too() -> None:
    mixed, other = [make_ranks([1, 2]), make_ranks([1, 2], split="valid")], make_ranks([3, 4])
    with pytest.raises(DataError, match="split"):
        compare(mixed, other)
    with pytest.raises(DataError, match="split"):
        compare(other, mixed)


def test_improvement_over_nothing() -> None:
    assert paired_test([1, 2], [0, 0]).improvement == math.inf
    assert math.isnan(paired_test([0, 0], [0, 0]).improvement)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fingerprint": "xyz"}, ["fingerprint", "abc", "xyz"]),
        ({"split": "valid"}, ["split", "test", "valid"]),
        ({"mask_history": True}, ["mask_history", "False", "True"]),
        ({"n_items": 99}, ["n_items", "100", "99"]),
        ({"target": np.array([1, 2, 9])}, ["1 only in the first", "1 only in the second", "'u2'"]),
        ({"raw_id": pl.Series(["u0", "u1", "other"])}, ["1 only in the first", "'u2'", "'other'"]),
        ({"raw_id": pl.Series(["u1", "u0", "u2"]), "target": np.array([2, 1, 3])}, ["order"]),
    ],
)
def test_runs_that_do_not_match_are_refused(changes: dict[str, object], named: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        compare(make_ranks([1, 2, 3]), make_ranks([1, 2, 3], model="base", **changes))
    for part in (*named, "run", "base"):
        assert part in str(caught.value)


def test_missing_users_are_counted() -> None:
    with pytest.raises(DataError, match=r"3 targets.* 2: 1 only in the first, 0 only in the second"):
        compare(make_ranks([1, 2, 3]), make_ranks([1, 2]))


def test_no_run_is_refused() -> None:
    with pytest.raises(DataError, match="at least one run"):
        compare([], make_ranks([1, 2]))


def test_bad_samples_and_options_are_refused() -> None:
    for a, b in (([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([[1.0, 2.0]], [[1.0, 2.0]])):
        with pytest.raises(DataError, match="shapes"):
            paired_test(a, b)
    with pytest.raises(DataError, match="not finite"):
        paired_test([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ConfigError, match="Did you mean 'wilcoxon'"):
        paired_test([1.0, 2.0], [2.0, 1.0], test="wilcox")
    with pytest.raises(ConfigError, match=r"confidence 95"):
        paired_test([1.0, 2.0], [2.0, 1.0], confidence=95)


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.3]))
@settings(max_examples=100, deadline=None)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - step) > alpha:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_holm_refuses_what_is_no_probability() -> None:
    for bad in (1.2, -0.1, math.nan):
        with pytest.raises(DataError, match="p-values"):
            holm([0.5, bad])
