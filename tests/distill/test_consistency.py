"""Consistency weights against the equations written out, and their invariants."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import DistillConfig
from ckd.distill.consistency import (
    consistent_weights,
    inconsistency,
    inconsistency_per_pair,
    integrate,
    normalise,
)
from ckd.distill.losses import masked_log_softmax
from ckd.distill.target import TargetBuilder, measure_epsilon
from ckd.errors import ConfigError

METHODS = ("softmax", "minmax", "zscore")


def teachers(count: int, size: int, seed: int, sharpness: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(size, size, generator=g) < 0.7) | torch.eye(size, dtype=torch.bool)
    return masked_log_softmax(torch.randn(count, size, size, generator=g) * sharpness, mask), mask


@pytest.mark.parametrize("method", METHODS)
def test_inconsistency_is_the_sum_over_the_other_teachers(method: str) -> None:
    log_scores, _ = teachers(3, 6, seed=0)
    s = normalise(log_scores, method)
    per_pair = inconsistency_per_pair(s)
    for k in range(3):
        expected = sum((s[k] - s[other]).square() for other in range(3) if other != k)
        torch.testing.assert_close(per_pair[k], expected)
    torch.testing.assert_close(inconsistency(s), per_pair.sum(dim=-1))


@pytest.mark.parametrize("method", METHODS)
def test_normalised_scores_are_what_they_are_called(method: str) -> None:
    log_scores, mask = teachers(3, 9, seed=1)
    s = normalise(log_scores, method)
    assert torch.all(s[:, ~mask] == 0)
    for k in range(3):
        for i in range(9):
            row = s[k, i][mask[i]]
            if method == "softmax":
                torch.testing.assert_close(row.sum(), torch.tensor(1.0))
            elif len(row) > 1 and method == "minmax":
                assert float(row.min()) == 0
                assert float(row.max()) == 1
            elif len(row) > 1:
                torch.testing.assert_close(row.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
                torch.testing.assert_close(row.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_the_odd_teacher_is_dropped_and_its_weight_shared() -> None:
    disagreement = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.1, 0.3], [0.2, 0.9, 0.1]])
    weights, dropped = consistent_weights(disagreement, torch.tensor([0.5, 0.3, 0.2]), epsilon=0.5)
    assert dropped.tolist() == [1, 2, -1]
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.65, 0.0, 0.35]))
    torch.testing.assert_close(weights[:, 1], torch.tensor([0.6, 0.4, 0.0]))
    torch.testing.assert_close(weights[:, 2], torch.tensor([0.5, 0.3, 0.2]))


def test_a_disagreement_at_the_threshold_drops() -> None:
    disagreement = torch.tensor([[0.5], [0.1], [0.1]])
    assert consistent_weights(disagreement, torch.full((3,), 1 / 3), epsilon=0.5)[1].tolist() == [0]
    assert consistent_weights(disagreement, torch.full((3,), 1 / 3), epsilon=0.51)[1].tolist() == [-1]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    size=st.integers(2, 10),
    seed=st.integers(0, 10_000),
    epsilon=st.floats(0, 2),
    per_pair=st.booleans(),
)
def test_weights_sum_to_one_and_only_the_dropped_teacher_has_none(
    count: int, size: int, seed: int, epsilon: float, per_pair: bool
) -> None:
    log_scores, _ = teachers(count, size, seed)
    s = normalise(log_scores)
    measure = inconsistency_per_pair if per_pair else inconsistency
    base = torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.1
    base = base / base.sum()
    disagreement = measure(s)
    weights, dropped = consistent_weights(disagreement, base, epsilon)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones_like(weights[0]))
    for k in range(count):
        assert torch.all((weights[k] == 0) == (dropped == k))
    if count < 3:
        assert torch.all(dropped == -1)
    else:
        assert torch.all((dropped >= 0) == (disagreement.amax(dim=0) >= epsilon))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_pair", [False, True])
def test_the_target_is_a_distribution_over_the_counted_columns(method: str, per_pair: bool) -> None:
    log_scores, mask = teachers(3, 8, seed=3, sharpness=40.0)
    s = normalise(log_scores, method)
    measure = inconsistency_per_pair if per_pair else inconsistency
    weights, _ = consistent_weights(measure(s), torch.tensor([0.2, 0.3, 0.5]), epsilon=0.1)
    log_q = integrate(log_scores, s, weights, method)
    assert torch.all(torch.isneginf(log_q) == ~mask)
    torch.testing.assert_close(log_q.exp().sum(dim=1), torch.ones(8))


def test_softmax_target_is_the_weighted_mean_of_the_scores() -> None:
    log_scores, _ = teachers(3, 7, seed=4)
    s = normalise(log_scores)
    weights = torch.tensor([0.2, 0.3, 0.5])[:, None].expand(3, 7)
    expected = (weights[:, :, None] * s).sum(dim=0)
    torch.testing.assert_close(integrate(log_scores, s, weights).exp(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_equal_teachers_never_disagree(method: str) -> None:
    one, mask = teachers(1, 6, seed=5)
    builder = TargetBuilder(DistillConfig(normalisation=method), ["a", "b", "c"], [1, 2, 3], [1, 1, 1], epsilon=1e-6)
    target = builder([one[0]] * 3, mask)
    assert target.dropped.tolist() == [0, 0, 0]
    if method == "softmax":
        torch.testing.assert_close(target.log_q, one[0], atol=1e-5, rtol=0)


def test_a_student_that_equals_its_teacher_has_no_distillation_loss() -> None:
    from ckd.distill.losses import distillation_loss

    one, mask = teachers(1, 6, seed=6)
    target = TargetBuilder(DistillConfig(), ["a"], [1.0], [1.0], epsilon=0.0)([one[0]], mask)
    torch.testing.assert_close(distillation_loss(one[0], target.log_q), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("consistency", ["instance", "pair"])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9])
def test_the_quantile_sets_the_share_that_keeps_every_teacher(consistency: str, quantile: float) -> None:
    batches = []
    for seed in range(4):
        log_scores, mask = teachers(3, 32, seed)
        batches.append((list(log_scores), mask))
    config = DistillConfig(consistency=consistency)
    builder = TargetBuilder(config, ["a", "b", "c"], [1, 1, 1], [1, 1, 1], epsilon=0.0)
    builder.epsilon = measure_epsilon(builder, batches, quantile)
    kept = [1 - float(builder(scores, mask).dropped.sum()) for scores, mask in batches]
    assert sum(kept) / 4 == pytest.approx(quantile, abs=0.05)


def test_consistency_off_uses_the_fixed_weights() -> None:
    log_scores, mask = teachers(3, 8, seed=7)
    builder = TargetBuilder(DistillConfig(consistency="off"), ["a", "b", "c"], [2, 3, 5], [1, 1, 1], epsilon=0.0)
    target = builder(list(log_scores), mask)
    expected = (torch.tensor([0.2, 0.3, 0.5])[:, None, None] * log_scores.exp()).sum(dim=0)
    torch.testing.assert_close(target.log_q.exp(), expected, atol=1e-6, rtol=1e-5)
    assert target.dropped.tolist() == [0, 0, 0]


def test_weights_that_sum_to_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one must be positive"):
        TargetBuilder(DistillConfig(), ["a", "b"], [0.0, 0.0], [1, 1], epsilon=0.0)
