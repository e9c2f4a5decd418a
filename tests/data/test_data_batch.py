"""Instances as tensors: sharing a user's prefixes changes nothing but the work."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.data.batch import Batch, Batches
from ckd.data.domain import Domain, leave_one_out


def make(lengths: list[int], cap: int, seed: int) -> Domain:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.random.default_rng(seed).integers(1, 10, int(indptr[-1])).astype(np.int32)
    table = pl.DataFrame({"item": range(1, 10), "raw_id": [str(n) for n in range(1, 10)], "text": [""] * 9})
    users = pl.Series("raw_id", [str(n) for n in range(len(lengths))])
    return Domain("toy", indptr, items, leave_one_out(indptr), table, users, history_cap=cap)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Domain, np.ndarray]:
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda found: max(found) >= 4))
    domain = make(lengths, draw(st.integers(1, 8)), draw(st.integers(0, 99)))
    n = len(domain.instances("train"))
    return domain, np.array(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12)))


def expected_histories(domain: Domain, ids: np.ndarray) -> list[list[int]]:
    found = domain.instances("train")
    return [domain.items[found.starts[i] : found.stops[i]].tolist() for i in ids]


def without_padding(batch: Batch) -> list[list[int]]:
    rows = batch.histories().tolist()
    return [row[:length] for row, length in zip(rows, batch.lengths.tolist(), strict=True)]


@settings(max_examples=60, deadline=None)
@given(batches())
def test_shared_and_separate_rows_hold_the_same_instances(case: tuple[Domain, np.ndarray]) -> None:
    domain, ids = case
    instances = domain.instances("train")
    shared = Batches(domain, instances)(ids)
    separate = Batches(domain, instances, share_prefixes=False)(ids)
    for batch in (shared, separate):
        assert without_padding(batch) == expected_histories(domain, ids)
        assert batch.targets.tolist() == instances.targets[ids].tolist()
        assert batch.users.tolist() == instances.users[ids].tolist()
        assert len(batch) == len(ids)
        padding = torch.arange(batch.sequences.shape[1]) >= batch.lengths[:, None]
        assert (batch.histories()[padding] == 0).all()
    assert torch.equal(shared.histories(), separate.histories())
    assert len(separate.sequences) == len(ids)
    assert len(shared.sequences) == len({int(instances.starts[i]) for i in ids})


@settings(max_examples=60, deadline=None)
@given(batches(), st.booleans())
def test_take_reads_the_last_item_of_each_history(case: tuple[Domain, np.ndarray], share: bool) -> None:
    domain, ids = case
    batch = Batches(domain, domain.instances("train"), share)(ids)
    last = [history[-1] for history in expected_histories(domain, ids)]
    assert batch.take(batch.sequences[..., None]).flatten().tolist() == last
    assert batch.packed.take(batch.packed.items[..., None]).flatten().tolist() == last


@settings(max_examples=60, deadline=None)
@given(batches(), st.booleans())
def test_packed_rows_hold_each_sequence_once_and_whole(case: tuple[Domain, np.ndarray], share: bool) -> None:
    domain, ids = case
    batch = Batches(domain, domain.instances("train"), share)(ids)
    packed = batch.packed
    found = []
    for items, positions, segments in zip(packed.items, packed.positions, packed.segments, strict=True):
        for segment in range(1, int(segments.max()) + 1):
            inside = segments == segment
            assert positions[inside].tolist() == list(range(int(inside.sum())))
            found.append(items[inside].tolist())
    sequences = [[item for item in row if item] for row in batch.sequences.tolist()]
    assert sorted(found) == sorted(sequences)
    assert (packed.items[packed.segments == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 150) | st.integers(1, 6), min_size=1, max_size=80))
def test_the_longest_sequences_are_packed_first_each_into_the_first_row_with_room(sizes: list[int]) -> None:
    width = min(max(128, *sizes), sum(sizes))
    rows: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        row = next((row for row in rows if sum(sizes[n] for n in row) + sizes[number] <= width), None)
        if row is None:
            rows.append(row := [])
        row.append(number)
    lengths = torch.tensor(sizes)
    # The items of a sequence are its number.
    histories = (torch.arange(len(sizes)) + 1)[:, None] * (torch.arange(max(sizes)) < lengths[:, None])
    packed = Batch.from_histories(histories, lengths, torch.ones_like(lengths)).packed
    expected = [[n + 1 for n in row for _ in range(sizes[n])] for row in rows]
    assert packed.items.tolist() == [row + [0] * (width - len(row)) for row in expected]
    segments = [[at + 1 for at, n in enumerate(row) for _ in range(sizes[n])] for row in rows]
    assert packed.segments.tolist() == [row + [0] * (width - len(row)) for row in segments]
    assert packed.take(packed.items[..., None]).flatten().tolist() == list(range(1, len(sizes) + 1))


def test_users_beyond_the_cap_have_sliding_windows() -> None:
    domain = make([12], cap=4, seed=1)
    instances = domain.instances("train")
    ids = np.arange(len(instances))
    batch = Batches(domain, instances)(ids)
    assert batch.lengths.tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    # The first four windows are prefixes of one sequence; the five that follow begin later, one item each.
    assert len(batch.sequences) == 6
    assert batch.sequences.shape[1] == 4
    assert without_padding(batch)[-1] == domain.items[5:9].tolist()


def test_rows_are_padded_to_the_longest_of_the_batch_only() -> None:
    domain = make([12, 4], cap=50, seed=1)
    instances = domain.instances("train")
    short = np.flatnonzero(instances.users == 1)
    assert Batches(domain, instances)(short).sequences.shape == (1, 1)


def test_histories_given_as_tensors_are_the_same_batch() -> None:
    domain = make([7, 5], cap=50, seed=3)
    instances = domain.instances("train")
    ids = np.arange(len(instances))
    built = Batches(domain, instances, share_prefixes=False)(ids)
    given_ = Batch.from_histories(built.histories(), built.lengths, built.targets, built.users)
    assert torch.equal(given_.sequences, built.sequences)
    assert torch.equal(given_.packed.items, built.packed.items)
    assert torch.equal(given_.packed.last, built.packed.last)
    assert Batch.from_histories(built.histories(), built.lengths, built.targets).users.tolist() == [0] * len(ids)


def test_moving_to_the_same_device_copies_nothing() -> None:
    domain = make([5], cap=50, seed=0)
    batch = Batches(domain, domain.instances("train"))(np.arange(2))
    assert batch.to("cpu") is batch


def test_moving_to_another_device_moves_every_tensor() -> None:
    domain = make([5], cap=50, seed=0)
    moved = Batches(domain, domain.instances("train"))(np.arange(2)).to("meta")
    tensors = [moved.users, moved.targets, moved.sequences, moved.rows, moved.lengths, moved.packed.last]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
