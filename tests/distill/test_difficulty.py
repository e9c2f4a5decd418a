"""Difficulty measures, buckets, and what teachers' scores say about instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import PlanConfig
from ckd.data.domain import Domain, leave_one_out
from ckd.distill.curriculum import FULL, Spread, assign_buckets, stage_of
from ckd.distill.difficulty import DIFFICULTIES, Samples, TeacherScores
from ckd.distill.plan import Plan, build_plan
from ckd.distill.teacher_statistics import measure_teachers
from ckd.errors import ConfigError, DataError, StoreError

MakeDomain = Callable[..., Domain]


@pytest.fixture
def domain() -> Domain:
    """Two users with instances; item 1 occurs 4 times in the training part, item 2 twice, items 3 and 4 once."""
    sequences = [[1, 2, 1, 9, 9], [1, 2, 3, 4, 1, 8, 8], [7, 7, 7]]
    indptr = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    return Domain(
        name="hand",
        indptr=indptr,
        items=np.concatenate(sequences).astype(np.int32),
        split=leave_one_out(indptr),
        item_table=pl.DataFrame({"item": range(1, 10), "raw_id": list("abcdefghi"), "text": [""] * 9}),
        user_ids=pl.Series(["x", "y", "z"]),
    )


def samples_of(domain: Domain, layout: str, **more: object) -> Samples:
    return Samples.of(domain, domain.instances("train"), layout, **more)  # type: ignore[arg-type]


def test_every_measure_is_registered() -> None:
    known = ["length", "none", "popularity", "ssl", "teacher_disagreement", "teacher_loss"]
    assert DIFFICULTIES.names() == known


def test_ssl_of_users_is_equation_1(domain: Domain) -> None:
    # Popularity (4, 2, 1, 1) / 4 of items 1 to 4; held-out items count nowhere.
    users = [3 / 5 - 0.5 * (1 + 0.5 + 1) / 3, 5 / 5 - 0.5 * (1 + 0.5 + 0.25 + 0.25 + 1) / 5]
    found = DIFFICULTIES.get("ssl")(samples_of(domain, "user", alpha=0.5))
    np.testing.assert_allclose(found, users, rtol=1e-15)


def test_ssl_of_instances_counts_history_and_target(domain: Domain) -> None:
    found = DIFFICULTIES.get("ssl")(samples_of(domain, "instance"))
    pop = {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25}
    sequences = [[1, 2], [1, 2, 1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 1]]
    expected = [len(s) / 5 - sum(pop[i] for i in s) / len(s) for s in sequences]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_samples_see_no_more_than_the_capped_history(domain: Domain) -> None:
    capped = replace(domain, history_cap=2)
    assert samples_of(capped, "user").lengths.tolist() == [3, 3]
    # The last three items of user y's training part are 3, 4, 1.
    np.testing.assert_allclose(samples_of(capped, "user").popularity, [2.5 / 3, 1.5 / 3])


def test_popularity_ignores_what_is_held_out(domain: Domain) -> None:
    items = domain.items.copy()
    items[domain.split != 0] = 5
    before, after = (samples_of(d, "user").popularity for d in (domain, replace(domain, items=items)))
    assert before.tolist() == after.tolist()


def test_length_and_popularity_are_the_terms_of_ssl(small_domain: Domain) -> None:
    samples = samples_of(small_domain, "user", alpha=0.7)
    length, popularity = DIFFICULTIES.get("length")(samples), DIFFICULTIES.get("popularity")(samples)
    expected = length / length.max() + 0.7 * popularity
    np.testing.assert_allclose(DIFFICULTIES.get("ssl")(samples), expected, rtol=1e-12)
    assert -1 <= popularity.min() < popularity.max() < 0


def test_none_gives_no_order(domain: Domain) -> None:
    assert DIFFICULTIES.get("none")(samples_of(domain, "user")) is None


def test_teacher_measures_are_means_over_a_users_instances(domain: Domain) -> None:
    scores = TeacherScores(np.array([1.0, 3, 2, 4, 6, 8]), np.array([0.5, 0.25, 0, 0, 0, 1]), "src")
    samples = samples_of(domain, "user", teachers=scores)
    assert DIFFICULTIES.get("teacher_loss")(samples).tolist() == [2.0, 5.0]
    assert DIFFICULTIES.get("teacher_disagreement")(samples).tolist() == [0.375, 0.25]
    each = samples_of(domain, "instance", teachers=scores)
    assert DIFFICULTIES.get("teacher_loss")(each).tolist() == scores.loss.tolist()


@pytest.mark.parametrize("measure", ["teacher_loss", "teacher_disagreement"])
def test_teacher_measures_refuse_what_is_missing(domain: Domain, measure: str) -> None:
    with pytest.raises(ConfigError, match=f"plan.difficulty='{measure}': needs teachers' scores of hand"):
        DIFFICULTIES.get(measure)(samples_of(domain, "user"))
    holes = TeacherScores(*[np.array([1.0, np.nan, 1, np.nan, 1, 1])] * 2, "src")
    with pytest.raises(StoreError, match="2 of 6 training instances"):
        DIFFICULTIES.get(measure)(samples_of(domain, "user", teachers=holes))
    short = TeacherScores(*[np.ones(5)] * 2, "src")
    with pytest.raises(StoreError, match="cover 5 training instances, hand has 6"):
        DIFFICULTIES.get(measure)(samples_of(domain, "user", teachers=short))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 8))
def test_buckets_ascend_are_equal_within_one_and_break_ties_by_id(values: list[int], n: int) -> None:
    buckets = assign_buckets(np.array(values, dtype=np.float64), n)
    sizes = np.bincount(buckets, minlength=n + 1)
    assert sizes[0] == 0
    assert len(sizes) == n + 1
    assert sizes[1:].max() - sizes[1:].min() <= 1
    assert sorted(sizes[1:], reverse=True) == sizes[1:].tolist()
    for a in range(len(values)):
        for b in range(a + 1, len(values)):
            assert buckets[a] <= buckets[b] if values[a] <= values[b] else buckets[a] >= buckets[b]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_difficulty_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="sample 1 is"):
        assign_buckets(np.array([0.0, bad]), 2)


def test_stages() -> None:
    assert [stage_of(e, 3, 2) for e in range(8)] == [1, 1, 2, 2, 3, 3, FULL, FULL]
    assert [stage_of(e, 1, 2) for e in range(3)] == [FULL] * 3


def test_spread_gives_values_that_occur() -> None:
    assert Spread.of(np.arange(11)[::-1]) == Spread(5.0, (1.0, 2.0, 5.0, 7.0, 9.0))
    assert Spread.of(np.array([3])) == Spread(3.0, (3.0,) * 5)


class FakeStore:
    """Log-scores of each batch, drawn from its id."""

    def __init__(self, plan: Plan, teachers: int) -> None:
        self.plan, self.teachers, self.asked = plan, teachers, []

    def scores(self, batch_id: int) -> list[np.ndarray]:
        rng = np.random.default_rng(batch_id)
        n = len(self.plan.batch(batch_id))
        logits = [rng.normal(size=(n, n)) for _ in range(self.teachers)]
        return [(z - np.log(np.exp(z).sum(1, keepdims=True))).astype(np.float16) for z in logits]

    def stream(self, batch_ids: Sequence[int]) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
        self.asked = list(batch_ids)
        return ((b, self.scores(b)) for b in batch_ids)


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_teachers_are_measured_over_the_columns_that_count(make_domain: MakeDomain, teachers: int) -> None:
    domain = make_domain([6, 9, 5, 12, 7], n_items=8)
    plan = build_plan(domain, PlanConfig(batch_size=9, difficulty="none", epochs=1), 3)
    store = FakeStore(plan, teachers)
    calls: list[tuple[int, int]] = []
    found = measure_teachers(plan, domain, store.stream, "src", lambda done, total: calls.append((done, total)))
    assert found.source == "src"
    assert calls == [(i + 1, plan.n_batches) for i in range(plan.n_batches)]
    instances = domain.instances("train")
    for b in range(plan.n_batches):
        ids = plan.batch(b).astype(int)
        users, targets = instances.users[ids].tolist(), instances.targets[ids].tolist()
        for row, i in enumerate(ids):
            own = {t for u, t in zip(users, targets, strict=True) if u == users[row]}
            columns = [j for j, t in enumerate(targets) if j == row or (t not in own and t not in targets[:j])]
            p = [np.exp(s[row, columns].astype(np.float64)) for s in store.scores(b)]
            p = [x / x.sum() for x in p]
            losses = [-np.log(x[columns.index(row)]) for x in p]
            assert found.loss[i] == pytest.approx(np.mean(losses), rel=1e-5)
            gaps = [((p[a] - p[c]) ** 2).sum() for a in range(teachers) for c in range(a)]
            if gaps:
                assert found.disagreement[i] == pytest.approx(np.mean(gaps), rel=1e-4)
            else:
                assert np.isnan(found.disagreement[i])


def test_scores_of_a_plan_that_skips_instances_are_refused(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=64, buckets=4, epochs=1), 0)
    with pytest.raises(StoreError, match=f"plan {plan.id} leaves .* unscored"):
        measure_teachers(plan, small_domain, FakeStore(plan, 1).stream, "src")


def test_scores_of_another_domain_are_refused(small_domain: Domain, domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(), 0)
    with pytest.raises(StoreError, match=f"{plan.domain}.*{domain.fingerprint}"):
        measure_teachers(plan, domain, FakeStore(plan, 1).stream, "src")


def test_plans_on_teachers_scores_are_bound_to_them(small_domain: Domain) -> None:
    n = len(small_domain.instances("train"))
    rng = np.random.default_rng(0)
    scores = TeacherScores(rng.random(n), rng.random(n), "scores of a")
    config = PlanConfig(batch_size=64, difficulty="teacher_loss", layout="instance", buckets=2)
    plan = build_plan(small_domain, config, 0, scores)
    easy = np.concatenate([plan.batch(b) for b in plan.schedule_of(0)[1]])
    assert scores.loss[easy].max() <= np.median(scores.loss)
    assert plan.scores == "scores of a"
    other = build_plan(small_domain, config, 0, replace(scores, source="scores of b"))
    assert other.fingerprint != plan.fingerprint
