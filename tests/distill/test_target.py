"""What the target builder adds to consistency weighting: temperatures, weights, memory of targets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import DistillConfig
from ckd.distill.consistency import MINMAX_FLOOR
from ckd.distill.losses import masked_log_softmax
from ckd.distill.target import Target, TargetBuilder, TargetCache, measure_epsilon


def logits(count: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(size, size, generator=g) < 0.7) | torch.eye(size, dtype=torch.bool)
    return torch.randn(count, size, size, generator=g, dtype=torch.float64), mask


@settings(max_examples=30, deadline=None)
@given(
    stored=st.floats(0.03, 3.0),
    wanted=st.floats(0.03, 3.0),
    size=st.integers(2, 9),
    seed=st.integers(0, 1000),
)
def test_scores_are_brought_to_the_wanted_temperature(stored: float, wanted: float, size: int, seed: int) -> None:
    z, mask = logits(1, size, seed)
    # What lies in the store knows nothing of the mask.
    log_scores = (z[0] / stored).log_softmax(dim=1).float()
    builder = TargetBuilder(DistillConfig(), ["a"], [1.0], [stored / wanted], epsilon=0.0)
    expected = (z[0] / wanted).masked_fill(~mask, -torch.inf).log_softmax(dim=1).float()
    torch.testing.assert_close(builder([log_scores], mask).log_q, expected, atol=2e-4, rtol=2e-4)


def test_each_teacher_has_a_temperature_of_its_own() -> None:
    z, mask = logits(2, 6, seed=1)
    stored = [0.5, 2.0]
    log_scores = [(z[k] / stored[k]).log_softmax(dim=1).float() for k in range(2)]
    builder = TargetBuilder(DistillConfig(), ["a", "b"], [1.0, 3.0], [tau / 1.0 for tau in stored], epsilon=0.0)
    expected = [masked_log_softmax(z[k], mask).exp() for k in range(2)]
    torch.testing.assert_close(builder(log_scores, mask).log_q.exp(), 0.25 * expected[0] + 0.75 * expected[1])


@pytest.mark.parametrize("consistency", ["instance", "pair", "off"])
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_the_order_of_teachers_does_not_matter(consistency: str, order: tuple[int, ...]) -> None:
    z, mask = logits(3, 24, seed=2)
    log_scores = list((z * 3).log_softmax(dim=-1).float())
    weights = [0.5, 0.3, 0.2]

    def build(numbers: tuple[int, ...]) -> Target:
        builder = TargetBuilder(
            DistillConfig(consistency=consistency),
            [str(k) for k in numbers],
            [weights[k] for k in numbers],
            [1.0] * 3,
            epsilon=0.2 if consistency == "instance" else 0.01,
        )
        return builder([log_scores[k] for k in numbers], mask)

    straight, shuffled = build((0, 1, 2)), build(order)
    torch.testing.assert_close(shuffled.log_q, straight.log_q)
    assert shuffled.dropped.tolist() == [straight.dropped.tolist()[k] for k in order]
    assert (sum(straight.dropped.tolist()) > 0) == (consistency != "off")


def test_a_teacher_without_weight_has_no_say_of_its_own() -> None:
    z, mask = logits(2, 6, seed=3)
    log_scores = list(z.log_softmax(dim=-1).float())
    target = TargetBuilder(DistillConfig(), ["a", "b"], [0.0, 2.0], [1.0, 1.0], epsilon=0.0)(log_scores, mask)
    torch.testing.assert_close(target.log_q, masked_log_softmax(z[1], mask))


def test_dropped_shares_count_instances_or_counted_pairs() -> None:
    """Two teachers agree; the third disagrees on two of four instances."""
    agreed = torch.full((4, 4), 0.25).log()
    odd = agreed.clone()
    odd[:2] = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 3] = False
    by_instance = TargetBuilder(DistillConfig(), ["a", "b", "c"], [1, 1, 1], [1, 1, 1], epsilon=0.1)
    torch.testing.assert_close(by_instance([agreed, agreed, odd], mask).dropped, torch.tensor([0.0, 0.0, 0.5]))
    by_pair = TargetBuilder(DistillConfig(consistency="pair"), ["a", "b", "c"], [1, 1, 1], [1, 1, 1], epsilon=0.3)
    # Of 15 counted pairs, two have a D of 2 (0.97 - 0.25)^2 or more; five have 2 (0.01 - 0.25)^2 = 0.12 or 0.21.
    torch.testing.assert_close(by_pair([agreed, agreed, odd], mask).dropped, torch.tensor([0.0, 0.0, 2 / 15]))
    by_pair.epsilon = 0.1
    torch.testing.assert_close(by_pair([agreed, agreed, odd], mask).dropped, torch.tensor([0.0, 0.0, 7 / 15]))


def mixed(z: torch.Tensor, mask: torch.Tensor, weights: list[float], method: str) -> torch.Tensor:
    """log q by the definitions, row by row: weighted normalised scores over the columns that count, then Eq. (7)."""
    log_q = torch.full(mask.shape, -torch.inf, dtype=torch.float64)
    for row, counted in enumerate(mask):
        total = torch.zeros(int(counted.sum()), dtype=torch.float64)
        for weight, scores in zip(weights, z[:, row, counted], strict=True):
            log_s = scores.log_softmax(dim=0)
            s = log_s.exp()
            standard = (log_s - log_s.mean()) / log_s.std(correction=0)
            total += weight * (standard if method == "zscore" else (s - s.min()) / (s.max() - s.min()))
        floored = total.clamp_min(MINMAX_FLOOR)
        log_q[row, counted] = total.log_softmax(dim=0) if method == "zscore" else (floored / floored.sum()).log()
    return log_q


@pytest.mark.parametrize("method", ["minmax", "zscore"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_target_of_other_normalisations(method: str, count: int) -> None:
    z, _ = logits(count, 9, seed=4)
    # A row with one column alone has no span and no deviation; three are in every row.
    mask = (torch.eye(9) + torch.eye(9).roll(1, 1) + torch.eye(9).roll(4, 1)) > 0
    weights = [0.5, 0.3, 0.2][:count]
    config = DistillConfig(normalisation=method, consistency="off")  # type: ignore[arg-type]
    builder = TargetBuilder(config, list("abc")[:count], weights, [1.0] * count, epsilon=0.0)
    found = builder(list((3 * z).log_softmax(dim=-1).float()), mask).log_q
    expected = mixed(3 * z, mask, [weight / sum(weights) for weight in weights], method)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("normalisation", ["softmax", "minmax", "zscore"])
@pytest.mark.parametrize("consistency", ["instance", "pair"])
def test_the_quantile_is_the_share_that_keeps_every_teacher(normalisation: str, consistency: str) -> None:
    batches = []
    for seed in range(4):
        z, mask = logits(3, 32, seed)
        batches.append((list((3 * z).log_softmax(dim=-1).float()), mask))
    config = DistillConfig(consistency=consistency, normalisation=normalisation)  # type: ignore[arg-type]
    builder = TargetBuilder(config, ["a", "b", "c"], [1, 1, 1], [1, 1, 1], epsilon=0.0)
    builder.epsilon = measure_epsilon(builder, batches, 0.3)
    kept = [1 - float(builder(*batch).dropped.sum()) for batch in batches]
    assert sum(kept) / len(kept) == pytest.approx(0.3, abs=0.05)


def test_epsilon_is_the_quantile_over_all_batches() -> None:
    batches = []
    for seed in range(3):
        z, mask = logits(3, 10, seed)
        batches.append((list((z * 4).log_softmax(dim=-1).float()), mask))
    builder = TargetBuilder(DistillConfig(), ["a", "b", "c"], [1, 1, 1], [1, 1, 1], epsilon=0.0)
    values = torch.cat([builder.disagreement(*batch) for batch in batches])
    assert measure_epsilon(builder, batches, 0.0) == pytest.approx(float(values.min()))
    assert measure_epsilon(builder, batches, 0.5) == pytest.approx(float(values.double().quantile(0.5)))
    assert measure_epsilon(builder, batches, 1.0) == pytest.approx(float(values.max()))


def test_targets_are_kept_while_there_is_room() -> None:
    targets = [Target(torch.full((4, 4), float(n)), torch.zeros(1)) for n in range(3)]
    cache = TargetCache(2 * targets[0].log_q.nbytes + 1)
    for number, target in enumerate(targets):
        assert cache.get(number) is None
        cache.put(number, target)
    assert [number in cache for number in range(3)] == [True, True, False]
    assert cache.get(1) is targets[1]
    assert cache.get(2) is None
