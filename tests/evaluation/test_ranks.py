from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ckd.data.batch import Batch, Batches
from ckd.data.domain import Domain, leave_one_out
from ckd.data.example import TARGET
from ckd.errors import CkdError, DataError
from ckd.evaluation.ranks import META, load_ranks, rank_targets, save_ranks, tie_draws
from ckd.nn.recommender import Recommender
from ckd.students.sasrec import SASRec, SASRecConfig
from ckd.teachers.protocol import Teacher


class SumOfItems(Recommender):
    """Scores by the product with the sum of the history's vectors; small whole numbers, so arithmetic is exact."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.dropout = nn.Dropout(0.5)

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.dropout((self.table[batch.histories()] * (batch.histories() > 0)[..., None]).sum(1))

    def item_table(self) -> torch.Tensor:
        return self.table


class Unfactored(SumOfItems):
    """Distance, which is no product."""

    factored = False

    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        table = self.table if items is None else self.table[items]
        return -(encoded[:, None] - table).abs().sum(-1)


class PlainTeacher:
    """A teacher that is no module, around the same vectors."""

    Config = dict
    temperature = 1.0

    def __init__(self, table: torch.Tensor, similarity: str) -> None:
        self.model = SumOfItems(table).eval()
        self.similarity = similarity

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return self.model.encode(batch)

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        return self.model.table.detach()[items]

    @classmethod
    def create(cls, config: Any, domain: Domain) -> PlainTeacher:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, domain: Domain) -> PlainTeacher:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def domain(tiny: dict[str, Domain]) -> Domain:
    return tiny[TARGET]


def whole_numbers(seed: int, domain: Domain, size: int = 3) -> torch.Tensor:
    """Item vectors with so few values that many scores tie; padding would come first everywhere."""
    table = torch.randint(-2, 3, (domain.n_items + 1, size), generator=torch.Generator().manual_seed(seed)).float()
    table[0] = 1e6
    return table


def naive_ranks(scores: np.ndarray, domain: Domain, split: str, mask_history: bool) -> list[int]:
    """Sorts each user's items; of the places of those that tie with the target, the one that is drawn for it."""
    instances = domain.instances(split)  # type: ignore[arg-type]
    draws = tie_draws(instances, np.arange(len(instances)))
    ranks = []
    for row, (user, target, stop) in enumerate(zip(instances.users, instances.targets, instances.stops, strict=True)):
        past = set(domain.items[domain.indptr[user] : stop].tolist()) if mask_history else set()
        items = [i for i in range(1, domain.n_items + 1) if i == target or i not in past]
        ordered = sorted(items, key=lambda i: -scores[row, i])
        tied = [at for at, item in enumerate(ordered, start=1) if scores[row, item] == scores[row, target]]
        ranks.append(tied[math.floor(draws[row] * len(tied))])
    return ranks


def all_scores(model: SumOfItems, domain: Domain, split: str) -> np.ndarray:
    instances = domain.instances(split)  # type: ignore[arg-type]
    batch = Batches(domain, instances)(np.arange(len(instances)))
    with torch.no_grad():
        return model.eval().score_items(model.encode(batch)).numpy()


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([SumOfItems, Unfactored]),
    split=st.sampled_from(["valid", "test", "train"]),
    mask_history=st.booleans(),
    batch_size=st.integers(1, 80),
    item_block=st.integers(1, 50),
    chunk=st.sampled_from([1, 60, 1 << 18]),
    positions=st.sampled_from([1, 20, 1 << 13]),
)
@settings(max_examples=40, deadline=None)
def test_ranks_equal_those_of_sorting(
    domain: Domain,
    seed: int,
    kind: type[SumOfItems],
    split: Any,
    mask_history: bool,
    batch_size: int,
    item_block: int,
    chunk: int,
    positions: int,
) -> None:
    model = kind(whole_numbers(seed, domain))
    with patch("ckd.nn.chunks.CHUNK_ELEMENTS", chunk), patch("ckd.evaluation.ranks.POSITIONS", positions):
        found = rank_targets(
            model, domain, split, batch_size=batch_size, item_block=item_block, mask_history=mask_history
        )
    assert found.rank.tolist() == naive_ranks(all_scores(model, domain, split), domain, split, mask_history)


@given(positions=st.integers(1, 60), batch_size=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_histories_are_encoded_by_length_in_as_few_passes_as_the_positions_allow(
    domain: Domain, positions: int, batch_size: int
) -> None:
    passes: list[list[int]] = []

    class Recording(SumOfItems):
        def encode(self, batch: Batch) -> torch.Tensor:
            assert batch.sequences.shape == (len(batch), int(batch.lengths.max()))
            passes.append(batch.lengths.tolist())
            return super().encode(batch)

    with patch("ckd.evaluation.ranks.POSITIONS", positions), patch("ckd.evaluation.ranks.TOGETHER", 3):
        rank_targets(Recording(whole_numbers(0, domain)), domain, "test", batch_size=batch_size)
    expected: list[list[int]] = []
    lengths = sorted(domain.instances("test").lengths.tolist())
    for start in range(0, len(lengths), 3 * batch_size):
        fresh = True
        for length in lengths[start : start + 3 * batch_size]:
            if fresh or (len(expected[-1]) + 1) * length > positions:
                expected.append([])
            expected[-1].append(length)
            fresh = False
    assert passes == expected


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("item_block", [7, 1000])
def test_a_teacher_ranks_by_its_similarity(domain: Domain, similarity: str, item_block: int) -> None:
    table = torch.randn(domain.n_items + 1, 6, generator=torch.Generator().manual_seed(1))
    teacher = PlainTeacher(table, similarity)
    assert isinstance(teacher, Teacher)
    instances = domain.instances("test")
    users = teacher.encode_instances(Batches(domain, instances)(np.arange(len(instances))))
    scores = F.cosine_similarity(users[:, None], table, dim=-1) if similarity == "cosine" else users @ table.T
    found = rank_targets(teacher, domain, "test", item_block=item_block)
    assert found.rank.tolist() == naive_ranks(scores.double().numpy(), domain, "test", False)


def test_a_student_ranks_as_its_scores_say(domain: Domain) -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(hidden_size=16, inner_size=16), domain.n_items, domain.history_cap)
    found = rank_targets(model, domain, "test", batch_size=7)
    scores = all_scores(model, domain, "test")  # type: ignore[arg-type]
    assert found.rank.tolist() == naive_ranks(scores, domain, "test", False)


@pytest.mark.parametrize("item_block", [1, 9, 1000])
def test_a_model_that_scores_all_alike_ranks_as_by_chance(domain: Domain, item_block: int) -> None:
    found = rank_targets(SumOfItems(torch.zeros(domain.n_items + 1, 4)), domain, "test", item_block=item_block)
    n = domain.n_items
    assert found.rank.min() >= 1
    assert found.rank.max() <= n
    spread = math.sqrt((n**2 - 1) / 12 / len(found))
    assert found.rank.mean() == pytest.approx((n + 1) / 2, abs=4 * spread)
    assert len(set(found.rank.tolist())) > min(n, len(found)) / 3


@pytest.mark.parametrize("size", [8, 50, 300])
@pytest.mark.parametrize("item_block", [1, 9, 39, 1000])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_equal_items_tie_exactly_whatever_their_vectors(
    domain: Domain, batch_size: int, item_block: int, size: int
) -> None:
    torch.manual_seed(0)
    model = SumOfItems(torch.randn(size).expand(domain.n_items + 1, size).clone())
    found = rank_targets(model, domain, "test", batch_size=batch_size, item_block=item_block)
    draws = tie_draws(domain.instances("test"), np.arange(len(found)))
    assert found.rank.tolist() == (1 + np.floor(draws * domain.n_items)).astype(int).tolist()


def test_draws_are_uniform_and_of_each_instance_its_own() -> None:
    instances = SimpleNamespace(stops=np.arange(10_000, dtype=np.int64))
    draws = tie_draws(instances, np.arange(10_000))  # type: ignore[arg-type]
    # The generator's first three outputs from state 0, as its authors publish them.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws[:3].tolist() == [(bits >> 11) * 2.0**-53 for bits in published]
    assert len(set(draws.tolist())) == len(draws)
    assert 0 <= draws.min() < draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 45  # chi-square of 19 degrees: beyond it once in 1,500
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / 100


def test_a_repeated_item_is_no_rival_but_stays_the_target() -> None:
    """The past is masked in whole, also beyond the history cap, and counts each item once."""
    domain = Domain(
        name="repeats",
        indptr=np.array([0, 6]),
        items=np.array([4, 2, 2, 3, 1, 3], dtype=np.int32),
        split=leave_one_out(np.array([0, 6])),
        item_table=pl.DataFrame({"item": [1, 2, 3, 4, 5], "raw_id": list("abcde"), "text": [""] * 5}),
        user_ids=pl.Series(["u"]),
        history_cap=2,
    )
    table = torch.tensor([[9.0], [5.0], [4.0], [1.0], [3.0], [2.0]])
    assert rank_targets(SumOfItems(table), domain, "test").rank.tolist() == [5]
    assert rank_targets(SumOfItems(table), domain, "test", mask_history=True).rank.tolist() == [2]


def test_a_target_of_the_past_still_ties_with_its_rivals() -> None:
    """All items score the same: of the three that are left and the target, each place is as likely, and comes up."""
    users, past = 60, [4, 2, 3, 2]
    indptr = np.arange(0, 4 * users + 1, 4)
    domain = Domain(
        name="tied",
        indptr=indptr,
        items=np.array(past * users, dtype=np.int32),
        split=leave_one_out(indptr),
        item_table=pl.DataFrame({"item": range(1, 7), "raw_id": list("abcdef"), "text": [""] * 6}),
        user_ids=pl.Series([f"u{n}" for n in range(users)]),
        history_cap=9,
    )
    found = rank_targets(SumOfItems(torch.ones(7, 1)), domain, "test", mask_history=True)
    assert set(found.rank.tolist()) == {1, 2, 3, 4}


def test_what_comes_with_the_ranks(domain: Domain) -> None:
    domain = replace(domain, history_cap=3)
    assert (domain.indptr[1:] - domain.indptr[:-1]).max() > 5
    model = SumOfItems(whole_numbers(0, domain))
    found = rank_targets(model, domain, "valid", batch_size=7, model="run-1", mask_history=True)
    instances = domain.instances("valid")
    assert found.user.tolist() == instances.users.tolist()
    assert found.target.tolist() == instances.targets.tolist()
    assert found.raw_id.to_list() == [domain.user_ids[int(u)] for u in instances.users]
    assert found.history_length.tolist() == instances.lengths.tolist()
    assert found.popularity.tolist() == [domain.popularity[t] for t in instances.targets]
    assert (found.n_items, found.domain, found.fingerprint) == (domain.n_items, domain.name, domain.fingerprint)
    assert (found.split, found.model, found.mask_history, len(found)) == ("valid", "run-1", True, len(instances))


def test_the_model_is_left_as_it_was(domain: Domain) -> None:
    model = SumOfItems(whole_numbers(0, domain))
    model.train()
    model.dropout.eval()
    before = [part.training for part in model.modules()]
    first = rank_targets(model, domain, "test")
    assert [part.training for part in model.modules()] == before
    model.train()
    assert rank_targets(model, domain, "test").rank.tolist() == first.rank.tolist()
    assert model.table.grad is None


def test_modes_are_restored_after_an_error(domain: Domain) -> None:
    model = SumOfItems(torch.zeros(3, 4))
    with pytest.raises(DataError, match=rf"SumOfItems knows 2 items, {TARGET} has {domain.n_items}"):
        rank_targets(model, domain, "test")
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize("item_block", [5, 1000])
def test_nan_is_an_error_that_names_the_model_and_the_user(domain: Domain, item_block: int) -> None:
    table = whole_numbers(0, domain)
    table[5] = math.nan
    with pytest.raises(CkdError, match=rf"run-1: NaN among the scores of 60 of 60 targets of {TARGET}.*'studio-user-0"):
        rank_targets(SumOfItems(table), domain, "test", model="run-1", item_block=item_block)


def test_infinite_scores_rank_like_any_other(domain: Domain) -> None:
    class Extreme(SumOfItems):
        factored = False

        def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
            assert items is not None
            scores = torch.where(items == 3, math.inf, torch.where(items == 4, -math.inf, 0.0))
            return scores.expand(len(encoded), -1)

    found = rank_targets(Extreme(whole_numbers(0, domain)), domain, "test", item_block=11)
    n = domain.n_items
    assert set(found.rank[found.target == 3].tolist()) == {1}
    assert set(found.rank[found.target == 4].tolist()) == {n}
    others = found.rank[~np.isin(found.target, (3, 4))]
    assert others.min() > 1
    assert others.max() < n
    assert len(set(others.tolist())) > 10


def test_a_split_without_targets_is_refused(domain: Domain) -> None:
    empty = replace(domain, split=np.zeros_like(domain.split))
    with pytest.raises(DataError, match=f"{TARGET}: no test target"):
        rank_targets(SumOfItems(whole_numbers(0, domain)), empty, "test")


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"item_block": 0}])
def test_sizes_below_1_are_refused(domain: Domain, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test", **sizes)  # type: ignore[arg-type]


def test_ranks_come_back_from_disk_with_equal_bytes(domain: Domain, tmp_path: Path) -> None:
    ranks = rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test", model="run-1")
    for name in ("a.parquet", "b.parquet"):
        save_ranks(ranks, tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = load_ranks(tmp_path / "a.parquet", domain)
    for name, value in vars(ranks).items():
        loaded = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert loaded.dtype == np.int64
            assert loaded.tolist() == value.tolist()
        else:
            assert (loaded.to_list() if name == "raw_id" else loaded) == (
                value.to_list() if name == "raw_id" else value
            )
    columns = ["user", "raw_id", "target", "rank", "history_length", "popularity"]
    assert pl.read_parquet(tmp_path / "a.parquet").columns == columns
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_ranks_of_another_domain_are_refused(tiny: dict[str, Domain], tmp_path: Path) -> None:
    domain, other = tiny[TARGET], next(iter(tiny.values()))
    path = tmp_path / "ranks.parquet"
    save_ranks(rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test"), path)
    with pytest.raises(DataError, match=f"ranks of {TARGET} with fingerprint {domain.fingerprint}") as caught:
        load_ranks(path, other)
    assert other.name in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert load_ranks(path).domain == TARGET


def test_damaged_files_are_refused_by_name(domain: Domain, tmp_path: Path) -> None:
    path = tmp_path / "ranks.parquet"
    with pytest.raises(DataError, match=r"ranks\.parquet: no ranks here"):
        load_ranks(path)
    save_ranks(rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test"), path)
    whole = bytearray(path.read_bytes())
    for damaged in (whole[:200], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], b"no parquet"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"ranks\.parquet: damaged") as caught:
            load_ranks(path)
        assert "\n" not in str(caught.value)
    pl.DataFrame({"rank": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"ranks\.parquet: Parquet, but holds no ranks"):
        load_ranks(path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"format": 2}', "has no 'split'"),
        (b'{"format": 2, "split": "test", "domain": "d"}', "has no 'n_items'"),
    ],
)
def test_ranks_that_do_not_say_what_they_belong_to_are_refused(
    domain: Domain, tmp_path: Path, meta: bytes, message: str
) -> None:
    path = tmp_path / "ranks.parquet"
    save_ranks(rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test"), path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({META: meta}), path)
    with pytest.raises(DataError, match=rf"ranks\.parquet: {message}.*Evaluate again\.$"):
        load_ranks(path)


@pytest.mark.parametrize("column", ["rank", "raw_id"])
def test_ranks_without_a_column_are_refused(domain: Domain, tmp_path: Path, column: str) -> None:
    path = tmp_path / "ranks.parquet"
    save_ranks(rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test"), path)
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(DataError, match=rf"ranks\.parquet: has no column '{column}'\. Evaluate again\.$"):
        load_ranks(path)


def test_another_format_is_refused(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ranks.parquet"
    ranks = rank_targets(SumOfItems(whole_numbers(0, domain)), domain, "test")
    with monkeypatch.context() as patch:
        patch.setattr("ckd.evaluation.ranks.FORMAT", 99)
        save_ranks(ranks, path)
    with pytest.raises(DataError, match="another format than 2"):
        load_ranks(path, domain)
