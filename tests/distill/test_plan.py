"""The batch plan: what every plan must be, whatever the domain and the configuration."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import PlanConfig
from ckd.data.domain import Domain
from ckd.distill.composition import Stream, batch_hash, pack, random_order
from ckd.distill.plan import FULL, Plan, build_plan
from ckd.errors import ConfigError, DataError

MakeDomain = Callable[..., Domain]

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25).filter(lambda ls: max(ls) >= 4)
configs = st.builds(
    PlanConfig,
    batch_size=st.integers(2, 40),
    layout=st.sampled_from(["user", "instance"]),
    difficulty=st.sampled_from(["ssl", "length", "popularity", "none"]),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    buckets=st.integers(1, 6),
    epochs_per_stage=st.integers(1, 2),
    epochs=st.integers(1, 16),
    pool=st.sampled_from([1, 2, 3, "fresh"]),
)
properties = settings(max_examples=150, deadline=None)


def naive_buckets(domain: Domain, config: PlanConfig) -> list[set[int]]:
    """The instances of each bucket, by the paper's words: sort the samples, cut into equal parts."""
    found = domain.instances("train")
    groups: dict[int, list[int]] = {}
    for i in range(len(found)):
        groups.setdefault(int(found.users[i]) if config.layout == "user" else i, []).append(i)
    counts = Counter(domain.items[domain.training_part].tolist())
    top = max(counts.values())
    samples = []
    for ids in groups.values():
        items = domain.items[found.starts[ids[-1]] : found.stops[ids[-1]] + 1].tolist()
        samples.append((ids, items, sum(counts[i] for i in items) / (len(items) * top)))
    longest = max(len(items) for _, items, _ in samples)
    measure: dict[str, Callable[[Any], float]] = {
        "ssl": lambda s: len(s[1]) / longest - config.alpha * s[2],
        "length": lambda s: len(s[1]),
        "popularity": lambda s: -s[2],
        "none": lambda s: 0.0,
    }
    n = 1 if config.difficulty == "none" else config.buckets
    ordered = sorted(samples, key=lambda s: (measure[config.difficulty](s) if n > 1 else 0.0, s[0][0]))
    sizes = [len(ordered) // n + (b < len(ordered) % n) for b in range(n)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [{i for ids, _, _ in ordered[starts[b] : starts[b + 1]] for i in ids} for b in range(n)]


@properties
@given(lengths=lengths, config=configs, seed=st.integers(0, 2**40), cap=st.sampled_from([3, 10, 50]))
def test_every_stage_holds_exactly_its_instances_once_an_epoch(
    make_domain: MakeDomain, lengths: list[int], config: PlanConfig, seed: int, cap: int
) -> None:
    domain = make_domain(lengths, seed=seed % 97, history_cap=cap)
    plan = build_plan(domain, config, seed)
    buckets = naive_buckets(domain, config)
    stage_epochs = len(buckets) * config.epochs_per_stage if len(buckets) > 1 else 0
    assert plan.epochs == config.epochs
    for epoch in range(plan.epochs):
        stage, batches = plan.schedule_of(epoch)
        expected_stage = epoch // config.epochs_per_stage + 1 if epoch < stage_epochs else FULL
        opened = set().union(*(buckets if stage == FULL else buckets[:stage]))
        visited = np.concatenate([plan.batch(b) for b in batches]).tolist()
        assert stage == expected_stage
        assert len(batches) == plan.steps_in(epoch) > 0
        assert sorted(visited) == sorted(opened)


@properties
@given(lengths=lengths, config=configs, seed=st.integers(0, 99))
def test_batches_fit_are_dense_distinct_and_hashed(
    make_domain: MakeDomain, lengths: list[int], config: PlanConfig, seed: int
) -> None:
    domain = make_domain(lengths)
    plan = build_plan(domain, config, seed)
    scheduled = {int(b) for epoch in range(plan.epochs) for b in plan.schedule_of(epoch)[1]}
    assert scheduled == set(range(plan.n_batches))
    buckets = naive_buckets(domain, config)
    for i in range(plan.n_batches):
        ids = plan.batch(i)
        assert ids.dtype == np.uint32
        assert 1 <= len(ids) == plan.sizes[i] <= config.batch_size
        assert (np.diff(ids.astype(np.int64)) > 0).all()
        assert plan.hashes[i] == batch_hash(ids)
        if plan.buckets[i] != FULL:
            assert set(ids.tolist()) <= buckets[plan.buckets[i] - 1]
    if config.pool != "fresh" and max(plan.tables.stages) != FULL:
        staged = {int(b) for e in range(plan.epochs) if plan.schedule_of(e)[0] != FULL for b in plan.schedule_of(e)[1]}
        assert all((plan.buckets[i] != FULL) == (i in staged) for i in range(plan.n_batches))


@properties
@given(lengths=lengths, config=configs, seed=st.integers(0, 99))
def test_user_layout_keeps_a_user_together(
    make_domain: MakeDomain, lengths: list[int], config: PlanConfig, seed: int
) -> None:
    domain = make_domain(lengths)
    config = config.model_copy(update={"layout": "user"})
    plan = build_plan(domain, config, seed)
    users = domain.instances("train").users
    counts = np.bincount(users)
    for epoch in range(plan.epochs):
        batches: dict[int, int] = Counter()
        for b in plan.schedule_of(epoch)[1]:
            for user in set(users[plan.batch(b)].tolist()):
                batches[user] += 1
        # A user with more than T instances is parted, into no more runs than needed.
        assert all(n <= -(-counts[user] // config.batch_size) for user, n in batches.items())


@properties
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    capacity=st.integers(12, 30),
)
def test_packing_is_next_fit_with_the_last_two_evened_out(counts: list[int], capacity: int) -> None:
    cuts = pack(np.array(counts), capacity).tolist()
    batches = [counts[a:b] for a, b in pairwise(cuts)]
    assert [c for batch in batches for c in batch] == counts
    assert all(batch and sum(batch) <= capacity for batch in batches)
    for batch, following in pairwise(batches[:-1]):
        assert sum(batch) + following[0] > capacity
    if len(batches) > 1:
        tail = batches[-2] + batches[-1]
        best = min(max(sum(tail[:k]), sum(tail[k:])) for k in range(1, len(tail)))
        assert max(sum(batches[-2]), sum(batches[-1])) == best


@pytest.mark.parametrize("layout", ["user", "instance"])
def test_last_batch_is_kept_and_no_stub(make_domain: MakeDomain, layout: str) -> None:
    domain = make_domain([4] * 129)  # one training instance each
    config = PlanConfig(batch_size=64, difficulty="none", epochs=1).model_copy(update={"layout": layout})
    assert build_plan(domain, config, 0).sizes.tolist() == [64, 32, 33]


def test_same_inputs_give_the_same_plan_and_any_other_input_another(
    small_domain: Domain, make_domain: MakeDomain
) -> None:
    base = build_plan(small_domain, PlanConfig(batch_size=32, epochs=8), 5)
    again = build_plan(small_domain, PlanConfig(batch_size=32, epochs=8), 5)
    assert base.fingerprint == again.fingerprint
    assert base.id == base.fingerprint[:12]
    others = [
        build_plan(small_domain, PlanConfig(batch_size=32, epochs=8), 6),
        build_plan(small_domain, PlanConfig(batch_size=32, epochs=9), 5),
        build_plan(small_domain, PlanConfig(batch_size=32, epochs=8, difficulty="length"), 5),
        build_plan(make_domain([3 + u % 9 for u in range(120)]), PlanConfig(batch_size=32, epochs=8), 5),
    ]
    assert len({plan.fingerprint for plan in [base, *others]}) == 5


def test_order_is_reshuffled_every_epoch(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=16, epochs=30, epochs_per_stage=3, buckets=3), 0)
    orders = [tuple(plan.schedule_of(e)[1].tolist()) for e in range(plan.epochs)]
    assert len(set(orders)) == plan.epochs


def test_seed_and_epoch_are_a_pair_and_not_a_sum(small_domain: Domain) -> None:
    config = PlanConfig(batch_size=16, layout="instance", epochs=6, difficulty="none", pool="fresh")
    one, two = build_plan(small_domain, config, 7), build_plan(small_domain, config, 8)
    assert not set(one.hashes.tolist()) & set(two.hashes.tolist())
    assert not np.array_equal(random_order(50, 7, Stream.ORDER, 3), random_order(50, 8, Stream.ORDER, 2))
    assert not np.array_equal(random_order(50, 7, Stream.ORDER, 3), random_order(50, 7, Stream.COMPOSITION, 3))


def test_seeds_beyond_32_bits_do_not_collide() -> None:
    assert not np.array_equal(random_order(50, 5, Stream.ORDER, 1), random_order(50, 5 + 2**32, Stream.ORDER, 0))


def test_random_order_is_uniform() -> None:
    counts = Counter(tuple(random_order(3, seed, Stream.ORDER, 0).tolist()) for seed in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_pool_is_cycled_after_the_curriculum(small_domain: Domain, pool: int) -> None:
    config = PlanConfig(batch_size=32, buckets=2, epochs=12, pool=pool)
    plan = build_plan(small_domain, config, 0)
    seen = [frozenset(plan.schedule_of(e)[1].tolist()) for e in range(2, 12)]
    assert len(set(seen)) == pool
    assert all(seen[e] == seen[e + pool] for e in range(10 - pool))
    assert all(not a & b for a in set(seen) for b in set(seen) if a is not b)


def test_curriculum_batches_are_shared_by_the_stages(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=32, buckets=3, epochs=6, epochs_per_stage=2), 0)
    stages = [set(plan.schedule_of(e)[1].tolist()) for e in range(6)]
    assert stages[0] == stages[1] < stages[2] == stages[3] < stages[4] == stages[5]


def test_fresh_composes_every_epoch_anew(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=64, buckets=3, epochs=7, pool="fresh"), 0)
    hashes = [set(plan.hashes[plan.schedule_of(e)[1]].tolist()) for e in range(7)]
    assert not any(a & b for i, a in enumerate(hashes) for b in hashes[:i])
    assert [plan.schedule_of(e)[0] for e in range(7)] == [1, 2, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("change", [{"buckets": 1}, {"difficulty": "none"}])
def test_without_a_curriculum_there_are_only_full_epochs(small_domain: Domain, change: dict[str, Any]) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=32, epochs=5).model_copy(update=change), 0)
    assert plan.tables.stages.tolist() == [FULL] * 5
    assert int(plan.sizes.sum()) == plan.n_instances
    assert len(plan.curriculum) == 1
    assert plan.curriculum[0].difficulty is None


def test_only_what_an_epoch_visits_is_composed(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=32, buckets=4, epochs=2, pool=3), 0)
    assert set(plan.buckets.tolist()) == {1, 2}


def test_difficulty_rises_over_buckets(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(buckets=5), 0)
    spreads = [bucket.difficulty for bucket in plan.curriculum]
    assert len(spreads) == 5
    for easier, harder in pairwise(spreads):
        assert easier is not None
        assert harder is not None
        assert easier.percentiles[-1] <= harder.percentiles[0]
        assert easier.mean <= harder.mean
    sizes = [bucket.samples for bucket in plan.curriculum]
    assert max(sizes) - min(sizes) <= 1


def test_batches_are_read_only_views(small_domain: Domain) -> None:
    plan = build_plan(small_domain, PlanConfig(batch_size=32), 0)
    with pytest.raises(ValueError, match="read-only"):
        plan.batch(0)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        plan.schedule_of(0)[1][0] = 1
    assert plan.batch(0).base is not None


def test_batch_hash_is_blake2b_of_little_endian_words() -> None:
    words = (3).to_bytes(4, "little") + (2**31).to_bytes(4, "little")
    expected = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
    assert batch_hash(np.array([3, 2**31], dtype=np.int64)) == expected
    assert batch_hash(np.array([2**31, 3])) != expected


def test_fresh_epochs_take_no_memory_each(make_domain: MakeDomain) -> None:
    domain = make_domain([12] * 2000, n_items=50)
    ids = 4 * len(domain.instances("train"))

    def peak(epochs: int) -> int:
        tracemalloc.start()
        build_plan(domain, PlanConfig(pool="fresh", epochs=epochs), 0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)  # caches of the domain
    assert peak(42) - peak(2) < 10 * ids


def test_an_unknown_measure_is_refused_with_a_suggestion(small_domain: Domain) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'length'"):
        build_plan(small_domain, PlanConfig(difficulty="lenght"), 0)


def test_a_domain_without_training_instances_is_refused(make_domain: MakeDomain) -> None:
    with pytest.raises(DataError, match="made has 0 training instances"):
        build_plan(make_domain([3, 3, 2]), PlanConfig(), 0)


def test_what_is_not_planned_is_no_index(small_domain: Domain) -> None:
    plan: Plan = build_plan(small_domain, PlanConfig(epochs=3), 0)
    for wrong in (-1, plan.n_batches):
        with pytest.raises(IndexError, match=str(wrong)):
            plan.batch(wrong)
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=str(wrong)):
            plan.schedule_of(wrong)
        with pytest.raises(IndexError, match=str(wrong)):
            plan.steps_in(wrong)
