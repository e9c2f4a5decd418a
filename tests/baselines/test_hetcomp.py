"""HetComp: the lists it learns from, and its trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.baselines import hetcomp, model_class, taught_class
from ckd.baselines.common.histories import training_items, user_histories
from ckd.baselines.hetcomp import HetCompConfig, HetCompTrainer
from ckd.baselines.hetcomp_parts.knowledge import importance, list_ndcg, target_lists
from ckd.baselines.hetcomp_parts.losses import overall_loss
from ckd.baselines.hetcomp_parts.rankings import (
    RankingLists,
    first_columns,
    list_length,
    load_rankings,
    ranking_lists,
    save_rankings,
)
from ckd.baselines.mf import MF, MFConfig
from ckd.config import parse
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.nn import chunks
from ckd.nn.recommender import Recommender
from ckd.nn.weights import read_weights
from ckd.students.sasrec import SASRec, SASRecConfig

QUICK = HetCompConfig(
    length=12, period=2, epochs=6, validate_every=2, batch_size=64, lr=0.01, metric="ndcg@10", patience=3
)


@pytest.fixture(scope="module")
def domain(tiny) -> Domain:
    return list(tiny.values())[-1]


def mf(domain: Domain, seed: int = 0) -> MF:
    torch.manual_seed(seed)
    return MF.create(MFConfig(embedding_size=8, initializer_range=0.1), domain)


def sasrec(domain: Domain, seed: int = 0) -> SASRec:
    torch.manual_seed(seed)
    return SASRec.create(SASRecConfig(hidden_size=8, inner_size=8, n_layers=1, n_heads=2), domain)


@pytest.fixture(scope="module")
def teachers(domain) -> list[list[np.ndarray]]:
    """Two teachers of two and three checkpoints."""
    return [[ranking_lists(mf(domain, 10 * t + v), domain, 12) for v in range(2 + t)] for t in range(2)]


def test_lists_longer_than_those_that_are_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"length=101: input should be less than or equal to 100"):
        parse(HetCompConfig, {"length": 101}, "baseline")


def test_target_lists_hold_no_training_item_and_none_twice(domain, teachers) -> None:
    training = training_items(domain)
    values = [importance(lists, domain.n_items) for lists in teachers]
    level = np.zeros((domain.n_users, 2), dtype=np.int64)
    for user, row in enumerate(target_lists(teachers, values, level, training, domain.n_items)):
        assert len(set(row.tolist())) == 12
        assert not set(row.tolist()) & {0, *training[user].tolist()}


# --- ranking lists ---------------------------------------------------------------------------------------------------


def brute_force(model: Recommender, domain: Domain, k: int) -> np.ndarray:
    histories = user_histories(domain)
    model.eval()
    with torch.no_grad():
        encoded = model.encode(Batches(domain, histories)(np.arange(len(histories))))
        scores = model.score_items(encoded)
    found = np.zeros((domain.n_users, k), dtype=np.int32)
    for user, row in zip(histories.users, scores.tolist(), strict=True):
        own = set(training_items(domain)[user].tolist())
        ranked = sorted((i for i in range(1, domain.n_items + 1) if i not in own), key=lambda i: -row[i])
        found[user] = ranked[:k]
    return found


@pytest.mark.parametrize("make", [mf, sasrec])
def test_ranking_lists_are_the_first_items_of_everyone(domain, make) -> None:
    model = make(domain).train()
    state = torch.get_rng_state()
    found = ranking_lists(model, domain, 12)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert (found == brute_force(model, domain, 12)).mean() > 0.99  # sums in another order may swap near ties


def test_ranking_lists_of_a_teacher_by_cosine(domain) -> None:
    model = mf(domain).eval()

    class Wrapped:
        similarity = "cosine"

        def encode_instances(self, batch: Any) -> torch.Tensor:
            return model.encode(batch)

        def encode_items(self, items: torch.Tensor) -> torch.Tensor:
            return model.item_table()[items]

    normal = mf(domain)
    with torch.no_grad():
        normal.item_emb.weight.copy_(torch.nn.functional.normalize(model.item_emb.weight, dim=1))
    found = ranking_lists(Wrapped(), domain, 12)  # type: ignore[arg-type]
    assert (found == ranking_lists(normal, domain, 12)).mean() > 0.99


class Fixed(Recommender):
    """Has buffers, and no parameter."""

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("users", torch.randn(domain.n_users, 4, generator=generator))
        self.register_buffer("items", torch.randn(domain.n_items + 1, 4, generator=generator))

    def encode(self, batch: Any) -> torch.Tensor:
        return self.users[batch.users]

    def item_table(self) -> torch.Tensor:
        return self.items


def test_a_model_without_parameters_has_ranking_lists(domain) -> None:
    model = Fixed(domain)
    assert (ranking_lists(model, domain, 12) == brute_force(model, domain, 12)).mean() > 0.99


def test_a_teacher_is_asked_on_its_own_device(domain, monkeypatch) -> None:
    class Teacher(torch.nn.Module):
        similarity, temperature = "dot", 1.0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, device="meta"))

        def encode_instances(self, batch: Any) -> torch.Tensor:
            seen.append(batch.users.device.type)
            raise Stopped

        def encode_items(self, items: torch.Tensor) -> torch.Tensor:
            seen.append(items.device.type)
            return self.weight.expand(len(items), 3)

    class Stopped(Exception):
        pass

    seen: list[str] = []
    with pytest.raises(Stopped):
        ranking_lists(Teacher(), domain, 12)  # type: ignore[arg-type]
    assert set(seen) == {"meta"}


def test_training_items_are_distinct_and_the_latest_first(domain) -> None:
    for user, items in enumerate(training_items(domain)):
        rows = slice(domain.indptr[user], domain.indptr[user + 1])
        part = domain.items[rows][domain.training_part[rows]].tolist()
        assert items.tolist() == list(dict.fromkeys(reversed(part)))


def test_the_places_of_users_items_in_a_matrix(domain) -> None:
    training = training_items(domain)
    assert len(training) == domain.n_users
    users = np.array([3, 0, domain.n_users - 1])
    for first in (0, 1):
        width = domain.n_items + 1 - first
        places, bounds = training.cells(users, width, first)
        for row, user in enumerate(users):
            found = places[bounds[row] : bounds[row + 1]] - row * width + first
            assert found.tolist() == training[user].tolist()
        assert bounds[-1] == len(places)
    with pytest.raises(IndexError):
        training[domain.n_users]


def test_training_items_are_sought_once(domain, monkeypatch) -> None:
    calls = []

    def counted(domain: Domain) -> Any:
        calls.append(domain)
        return training_items(domain)

    monkeypatch.setattr("ckd.baselines.hetcomp_parts.rankings.training_items", counted)
    ranking_lists(mf(domain), domain, 12)
    assert len(calls) == 1


def test_lists_are_as_long_as_the_catalogue_allows(domain) -> None:
    most = max(len(items) for items in training_items(domain))
    assert list_length(domain, 10_000) == domain.n_items - most
    assert list_length(domain, 11) == 11
    full = replace(
        domain,
        indptr=np.array([0, domain.n_items + 2]),
        items=np.array([*range(1, domain.n_items + 1), 1, 2], dtype=np.int32),
        split=np.array([0] * domain.n_items + [1, 2], dtype=np.uint8),
        user_ids=domain.user_ids[:1],
    )
    with pytest.raises(DataError, match="has all but 0 of"):
        list_length(full)


def test_lists_of_a_model_that_diverged_are_refused(domain) -> None:
    model = mf(domain)
    torch.nn.init.constant_(model.item_emb.weight, torch.nan)
    with pytest.raises(DataError, match="NaN among its scores"):
        ranking_lists(model, domain, 12)


def save(domain: Domain, folder: Path, epoch: int = 0) -> Path:
    path = folder / f"rankings-{epoch:05d}.parquet"
    items = np.full((domain.n_users, 12), epoch + 1, dtype=np.int32)
    save_rankings(RankingLists(items, domain.fingerprint, epoch, 0.1), path)
    return path


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(10, 30), st.integers(1, 12), st.integers(0, 10**6))
def test_the_first_of_a_list_are_those_of_a_stable_sort(rows: int, items: int, levels: int, seed: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (rows, items)).astype(np.float32))
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :10]
    assert torch.equal(first_columns(scores, 10), expected)


def test_few_users_at_a_time_are_listed_alike(domain, monkeypatch) -> None:
    model = mf(domain)
    expected = ranking_lists(model, domain, 12)
    monkeypatch.setattr("ckd.baselines.hetcomp_parts.rankings.SCORES", 7 * domain.n_items)
    assert np.array_equal(ranking_lists(model, domain, 12), expected)


def test_rankings_that_cannot_be_read_are_refused(domain, tmp_path) -> None:
    path = save(domain, tmp_path)
    with pytest.raises(DataError, match="lists of a domain with fingerprint"):
        load_rankings(path, replace(domain, history_cap=7))
    with pytest.raises(DataError, match="no such file"):
        load_rankings(tmp_path / "none.parquet", domain)
    pq.write_table(pa.table({"items": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="holds no ranking lists"):
        load_rankings(tmp_path / "other.parquet", domain)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"ckd.rankings": b'{"format": 0}'}), path)
    with pytest.raises(DataError, match="another format"):
        load_rankings(path, domain)
    whole = json.loads(table.schema.metadata[b"ckd.rankings"])
    for lacking in ("domain", "epoch", "quality"):
        meta = json.dumps({name: value for name, value in whole.items() if name != lacking})
        pq.write_table(table.replace_schema_metadata({b"ckd.rankings": meta}), path)
        with pytest.raises(DataError, match=rf"\.parquet: has no '{lacking}'\. Fine-tune the teacher again\.$"):
            load_rankings(path, domain)
    pq.write_table(table.replace_schema_metadata({b"ckd.rankings": b"{"}), path)
    with pytest.raises(DataError, match=r"not valid JSON.*Fine-tune the teacher again\.$"):
        load_rankings(path, domain)
    pq.write_table(pa.table({"other": [1]}).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match="has no column 'items'"):
        load_rankings(path, domain)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        load_rankings(path, domain)


# --- trainer ---------------------------------------------------------------------------------------------------------


def trainer(domain: Domain, teachers: Any, folder: Path, make: Any = mf, **options: Any) -> HetCompTrainer:
    config, device = options.pop("config", QUICK), options.pop("device", "cpu")
    return HetCompTrainer(make(domain, 99), domain, teachers, config, folder, {"run": 1}, device=device, **options)


@pytest.mark.parametrize("make", [mf, sasrec])
def test_a_student_comes_to_rank_as_its_teachers(domain, teachers, tmp_path, make) -> None:
    config = QUICK.model_copy(update={"epochs": 24, "validate_every": 8, "lr": 0.03})
    made = trainer(domain, teachers, tmp_path, make, config=config)
    target = made._target()
    before = list_ndcg(ranking_lists(made.student, domain, 12), target).mean()
    made.fit()
    # The best epoch may be an early one: what training has led to is in the last checkpoint.
    made.run.resume(made.everything, made.optimizer)
    assert made.curriculum.level.sum() > 0
    after = list_ndcg(ranking_lists(made.student, domain, 12), made._target()).mean()
    assert after > before + 0.1


@pytest.mark.parametrize("name", ["sasrec", "fm"])
def test_a_student_that_factors_is_scored_by_rows(domain, teachers, tmp_path, monkeypatch, name) -> None:
    kind = model_class(name)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 5 * domain.n_items)
    rows = []
    made = trainer(domain, teachers, tmp_path, lambda *_: kind.create(kind.Config(), domain))
    training = training_items(domain)

    def noted(scores: torch.Tensor, *lists: torch.Tensor) -> torch.Tensor:
        rows.append(len(scores))
        for observed, own in zip(lists[0], lists[2], strict=True):
            # The latest items tell whose row it is.
            latest = (observed[observed >= 0] + 1).tolist()
            (users,) = np.nonzero([items[: len(latest)].tolist() == latest for items in training])
            assert any(sorted(training[user]) == (own.nonzero()[:, 0] + 1).tolist() for user in users)
        return overall_loss(scores, *lists)

    monkeypatch.setattr(hetcomp, "overall_loss", noted)
    made.fit()
    assert max(rows) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_lists_and_teaches_the_same(domain, teachers, tmp_path) -> None:
    scores = torch.randint(0, 9, (50, 300), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(first_columns(scores.cuda(), 20).cpu(), first_columns(scores, 20))
    expected = ranking_lists(mf(domain), domain, 12)
    assert (ranking_lists(mf(domain).cuda(), domain, 12) == expected).mean() > 0.99
    one, other = (trainer(domain, teachers, tmp_path / name, device=name).fit().rows for name in ("cpu", "cuda"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-3)


def test_training_passes_from_the_overall_to_the_rank_loss(domain, teachers, tmp_path) -> None:
    config = QUICK.model_copy(update={"period": 1, "epochs": 30, "patience": 30, "alpha": 1e-6})
    rows: list[dict[str, Any]] = []
    done = trainer(domain, teachers, tmp_path, config=config, on_epoch=rows.append).fit()
    phases = [row["phase"] for row in rows]
    assert phases[0] == "overall"
    assert phases[-1] == "rank"
    assert phases == sorted(phases)
    assert done.rows == rows
    assert done.metrics.keys() >= {"ndcg@10", "recall@50"}
    # Threshold zero: one advance with every update after the first, the longest trajectory decides.
    assert phases.index("rank") == 1 + max(len(lists) for lists in teachers) - 1


def test_the_same_seed_gives_the_same_bytes_also_after_an_interruption(domain, teachers, tmp_path) -> None:
    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == 4:
            raise Killed

    trainer(domain, teachers, tmp_path / "once", sasrec).fit()
    with pytest.raises(Killed):
        trainer(domain, teachers, tmp_path / "twice", sasrec, on_epoch=kill).fit()
    torch.manual_seed(99)
    trainer(domain, teachers, tmp_path / "twice", sasrec).fit()
    once, twice = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice
    torch.testing.assert_close(
        trainer(domain, teachers, tmp_path / "once", sasrec).fit().metrics,
        trainer(domain, teachers, tmp_path / "twice", sasrec).fit().metrics,
        rtol=0,
        atol=0,
    )


def test_an_epoch_that_was_cut_off_and_turns_out_otherwise_is_not_the_best(
    domain, teachers, tmp_path, monkeypatch
) -> None:
    four = QUICK.model_copy(update={"epochs": 4})
    validated = iter([0.1, 0.2])
    monkeypatch.setattr(hetcomp, "ranking_metrics", lambda _: {"ndcg@10": next(validated)})
    cut = trainer(domain, teachers, tmp_path, config=four)
    save, saved = cut.run.save, []

    def killed(*parts) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(read_weights(tmp_path / "best.safetensors"))
        save(*parts)

    cut.run.save = killed
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    monkeypatch.setattr(hetcomp, "ranking_metrics", lambda _: {"ndcg@10": 0.05})
    result = trainer(domain, teachers, tmp_path, config=four).fit()
    assert (result.best_epoch, result.metrics["ndcg@10"]) == (1, 0.1)
    assert json.loads((tmp_path / "best.json").read_text())["log"]["epoch"] == 1
    kept = read_weights(tmp_path / "best.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in saved[0].items())
    assert not list(tmp_path.glob(".former*"))


def test_early_stopping(domain, teachers, tmp_path) -> None:
    config = QUICK.model_copy(update={"lr": 1e-12, "epochs": 40, "patience": 2})
    done = trainer(domain, teachers, tmp_path, config=config).fit()
    assert len(done.rows) == 6
    assert done.best_epoch == 1


def test_bad_input_to_the_trainer(domain, teachers, tmp_path) -> None:
    with pytest.raises(DataError, match="at least one teacher"):
        trainer(domain, [], tmp_path)
    with pytest.raises(DataError, match="at least one teacher"):
        trainer(domain, [[]], tmp_path)
    with pytest.raises(DataError, match=r"teacher 0, checkpoint 0: ranking lists of shape"):
        trainer(domain, [[teachers[0][0][:, :9]]], tmp_path)
    with pytest.raises(DataError, match="hold items from"):
        trainer(domain, [[teachers[0][0] + domain.n_items]], tmp_path)
    trainer(domain, teachers, tmp_path).fit()
    other = trainer(domain, teachers, tmp_path)
    other.run.identity = {"run": 2}
    with pytest.raises(DataError, match="belongs to a run with run = 1"):
        other.fit()


def test_models_are_found_among_students_and_baselines() -> None:
    assert model_class("mf") is MF
    assert model_class("sasrec") is SASRec
    with pytest.raises(ConfigError, match="unknown student 'sasrek'"):
        model_class("sasrek")


def test_hetcomp_teaches_students_and_matrix_factorisation() -> None:
    assert taught_class("mf") is MF
    assert taught_class("sasrec") is SASRec
    with pytest.raises(ConfigError, match=r"unknown student 'm'\. Did you mean 'mf'"):
        taught_class("m")
    # The serving half of a baseline that is trained in a way of its own.
    with pytest.raises(ConfigError, match=r"unknown student 'recguru'\. Known: .*gru4rec, lightgcn, mf, sasrec\."):
        taught_class("recguru")
