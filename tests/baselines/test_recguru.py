"""RecGURU: sequences, negatives, losses, the serving model and the three phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.baselines.recguru import RecGURU, RecGURUConfig
from ckd.baselines.recguru_parts.layers import Critic, sinusoids
from ckd.baselines.recguru_parts.losses import gradient_penalty, mean_bpr_loss, sampled_softmax_loss
from ckd.baselines.recguru_parts.sequences import FrequentNegatives, Sequences, end_with_mark
from ckd.baselines.recguru_parts.training import Corner, Lengths, RecGURUTrainer, noam_rate
from ckd.config import parse
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.evaluation.ranks import rank_targets
from ckd.students.common.negatives import NegativeSampler

SMALL = RecGURUConfig(
    hidden_size=8,
    inner_size=8,
    n_layers=1,
    n_heads=2,
    batch_size=32,
    recon_negatives=4,
    bpr_negatives=2,
    warmup_epochs=1,
    noam_steps=4,
    epochs=3,
    critic_steps=2,
)


@pytest.fixture(scope="module")
def domains(tiny) -> tuple[Domain, Domain]:
    """Target and source, with histories cut short."""
    *_, source, target = tiny.values()
    return replace(target, history_cap=8), replace(source, history_cap=8)


def trainer(domains: tuple[Domain, Domain], folder: Path, config: RecGURUConfig = SMALL, **more: Any) -> RecGURUTrainer:
    target, source = domains
    model = RecGURU.create(config, target)
    return RecGURUTrainer(model, target, source, config, folder, {"run": 1}, device="cpu", **more)


# --- sequences and negatives -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(3, 9))
def test_sequences_end_with_the_mark_and_shift_by_one(histories: list[list[int]], width: int) -> None:
    lengths = torch.tensor([len(each) for each in histories])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in histories], batch_first=True)
    batch = Sequences.for_training(end_with_mark(padded, lengths, width, 31))
    for row, history in enumerate(histories):
        kept = history[-(width - 1) :]
        assert batch.encoder[row].tolist() == [0] * (width - 1 - len(kept)) + kept + [31]
        predicted = kept if len(kept) <= width - 2 else kept[1:]
        assert [i for i in batch.outputs[row].tolist() if i] == predicted
        assert 31 not in batch.outputs[row].tolist() + batch.inputs[row].tolist()
    assert torch.equal(batch.inputs[:, 2:], batch.encoder[:, :-2])
    assert torch.equal(batch.inputs[:, 3:], batch.outputs[:, 2:-1])


def test_frequent_negatives_are_never_the_users_and_follow_popularity(domains) -> None:
    target, _ = domains
    draw = FrequentNegatives(target, NegativeSampler.of(target))
    users = torch.arange(target.n_users)
    torch.manual_seed(0)
    found = draw(users, 400)
    assert found.min() >= 1
    assert found.max() <= target.n_items
    part = target.training_part
    own = {*zip(target.user_of[part].tolist(), target.items[part].tolist(), strict=True)}
    drawn = {(user, item) for user, row in enumerate(found.tolist()) for item in row}
    assert not own & drawn
    counts = np.bincount(found.flatten(), minlength=target.n_items + 1)[1:]
    assert (counts[target.popularity[1:] == 0] == 0).all()
    assert np.corrcoef(counts, target.popularity[1:] ** 0.75)[0, 1] > 0.9


def test_a_user_with_every_popular_item_gets_others(domains) -> None:
    target, _ = domains
    n = target.n_items
    greedy = replace(
        target,
        indptr=np.array([0, n - 1]),
        items=np.arange(1, n, dtype=np.int32),
        split=np.zeros(n - 1, dtype=np.uint8),
        user_ids=target.user_ids[:1],
    )
    draw = FrequentNegatives(greedy, NegativeSampler.of(greedy))
    assert set(draw(torch.zeros(3, dtype=torch.int64), 5).flatten().tolist()) == {n}


# --- losses and layers -----------------------------------------------------------------------------------------------


def test_losses_of_no_knowledge() -> None:
    assert float(sampled_softmax_loss(torch.full((2, 5), 3.0))) == pytest.approx(np.log(5), rel=1e-6)
    negative = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    assert float(mean_bpr_loss(torch.zeros(2), negative)) == pytest.approx(np.log(2), rel=1e-6)


def test_losses_look_where_something_is_predicted_alone(domains, tmp_path) -> None:
    made = trainer(domains, tmp_path)
    made.everything.eval()
    batch = made.corners["a"].sequences(np.arange(6))
    negatives = made.corners["a"].negatives(np.arange(6), 3)
    others = negatives.where(batch.outputs[..., None] != 0, 1)
    assert not torch.equal(negatives, others)
    for loss_of in (made.pair.reconstruction_loss, made.pair.recommendation_loss):
        assert torch.equal(loss_of("a", batch, negatives), loss_of("a", batch, others))


def test_the_penalty_is_zero_where_the_critic_has_slope_one() -> None:
    class Slope(Critic):
        def __init__(self, slope: float) -> None:
            super().__init__(2)
            self.slope = slope

        def forward(self, user_BD: torch.Tensor) -> torch.Tensor:
            return self.slope * user_BD[:, 0]

    users = [torch.randn(4, 2) for _ in range(2)]
    for slope, expected in ((1.0, 0.0), (-1.0, 0.0), (3.0, 4.0)):
        found = gradient_penalty(Slope(slope), *users, torch.rand(4, 1))
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_penalty_teaches_the_critic_and_not_the_encoder() -> None:
    critic, users = Critic(4), [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    gradient_penalty(critic, *users, torch.rand(3, 1)).backward()
    assert critic.main[0].weight.grad.abs().sum() > 0
    assert users[0].grad is None


@pytest.mark.parametrize("size", [5, 8])
def test_sinusoids_of_any_size(size: int) -> None:
    table = sinusoids(7, size)
    assert table.shape == (7, size)
    assert float(table[3, 2]) == pytest.approx(np.sin(3 / 10000 ** (2 / size)), abs=1e-6)
    assert float(table[3, 1]) == pytest.approx(np.cos(3), abs=1e-6)


def test_the_rate_rises_and_falls() -> None:
    rates = [noam_rate(step, 10, 16) for step in range(1, 41)]
    assert int(np.argmax(rates)) == 9
    assert rates[39] == pytest.approx(rates[9] / 2)
    assert rates[0] == pytest.approx(rates[9] / 10)


def test_phases_take_their_published_shares() -> None:
    lengths = Lengths.of(RecGURUConfig(warmup_epochs=3, epochs=10))
    assert [lengths.phase(epoch) for epoch in (0, 2, 3, 8, 9, 14)] == [
        ("warmup", 0),
        ("warmup", 2),
        ("adversarial", 0),
        ("adversarial", 5),
        ("tuning", 0),
        ("tuning", 5),
    ]
    assert lengths.total == 3 + 6 + 6


def test_an_unknown_key_and_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'head'"):
        parse(RecGURUConfig, {"head": 1}, "recguru")
    with pytest.raises(ConfigError, match="no multiple of 3 heads"):
        parse(RecGURUConfig, {"n_heads": 3, "hidden_size": 8}, "recguru")


# --- the serving model -----------------------------------------------------------------------------------------------


def batch_of(*histories: list[int]) -> Batch:
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in histories], batch_first=True)
    lengths = torch.tensor([len(each) for each in histories])
    return Batch.from_histories(padded, lengths, torch.ones(len(histories), dtype=torch.int64))


def test_the_serving_model_reads_the_last_item_and_the_order(domains) -> None:
    torch.manual_seed(0)
    model = RecGURU.create(SMALL, domains[0]).eval()
    with torch.no_grad():
        plain, last, order = model.encode(batch_of([1, 2, 3], [1, 2, 4], [2, 1, 3]))
        alone = model.encode(batch_of([1, 2, 3]))[0]
    assert (plain - last).abs().max() > 1e-3
    assert (plain - order).abs().max() > 1e-4
    torch.testing.assert_close(plain, alone, atol=1e-6, rtol=1e-5)
    assert model.item_table().shape == (domains[0].n_items + 1, SMALL.hidden_size)


def test_serving_goes_on_where_training_left_off(domains, tmp_path) -> None:
    """The vector for a history predicts what training predicts after it, were the user vector the same."""
    made = trainer(domains, tmp_path)
    made.everything.eval()
    made.model.eval()
    history = [1, 2, 3, 4]
    # Training reads a sequence of four items and predicts the last at the last place, from the first three.
    sequences = end_with_mark(torch.tensor([history]), torch.tensor([4]), made.model.width, made.model.mark)
    batch = Sequences.for_training(sequences)
    with torch.no_grad():
        served = made.model.encode(batch_of(history[:3]))
        sequences_3 = end_with_mark(torch.tensor([history[:3]]), torch.tensor([3]), made.model.width, made.model.mark)
        inputs = torch.cat([torch.zeros(1, 1, dtype=torch.int64), sequences_3[:, :-1]], dim=1)
        assert torch.equal(inputs, batch.inputs)
        users = made.pair.users("a", sequences_3, inputs)
        torch.testing.assert_close(served, made.pair.recommend("a", batch, users)[:, -1])


# --- training --------------------------------------------------------------------------------------------------------


def test_three_phases_then_a_model_that_ranks(domains, tmp_path) -> None:
    rows: list[dict[str, Any]] = []
    made = trainer(domains, tmp_path, on_epoch=rows.append)
    done = made.fit()
    assert [row["phase"] for row in rows] == ["warmup"] + ["adversarial"] * 2 + ["tuning"] * 2
    assert rows[0].keys() >= {"recon_a", "recon_b"}
    assert rows[1].keys() >= {"recon_a", "recon_b", "adversarial"}
    assert rows[3].keys() >= {"recommendation", "recon_a", "valid_ndcg@10"}
    assert "valid_ndcg@10" not in rows[2]
    assert done.best_epoch in (3, 4)
    again = rank_targets(made.model, domains[0], "valid")
    assert (again.rank <= domains[0].n_items).all()
    assert done.metrics["mrr"] == pytest.approx(float((1 / again.rank).mean()))


def test_training_learns(domains, tmp_path) -> None:
    config = SMALL.model_copy(
        update={"epochs": 25, "warmup_epochs": 10, "lr": 0.01, "patience": 100, "critic_steps": 1}
    )
    rows = trainer(domains, tmp_path, config).fit().rows
    phases = {phase: [row for row in rows if row["phase"] == phase] for phase in ("warmup", "adversarial", "tuning")}
    assert phases["warmup"][-1]["recon_a"] < phases["warmup"][0]["recon_a"] - 0.05
    assert phases["warmup"][-1]["recon_b"] < phases["warmup"][0]["recon_b"] - 0.05
    assert phases["tuning"][-1]["recommendation"] < phases["tuning"][0]["recommendation"] - 0.05


def test_a_step_reads_its_losses_at_once(domains, tmp_path, monkeypatch) -> None:
    made = trainer(domains, tmp_path)
    weight = next(made.pair.parameters())
    parts = {"one": weight.sum(), "other": (weight**2).mean(), "zero": weight.sum() * 0.0}
    expected = {name: value.item() for name, value in parts.items()}

    def refused(_: torch.Tensor) -> float:
        raise AssertionError("a reading by itself")

    reads = []
    tolist = torch.Tensor.tolist

    def counted(self: torch.Tensor) -> Any:
        reads.append(self)
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "__float__", refused)
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    assert made._step(parts, 0) == expected
    assert len(reads) == 1


def test_what_each_phase_teaches(domains, tmp_path) -> None:
    made = trainer(domains, tmp_path)
    rows = {side: np.arange(8) for side in ("a", "b")}

    def taught(parts: dict[str, torch.Tensor]) -> set[str]:
        made.everything.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        return {
            name.split(".")[1] if name.startswith("pair") else "critic"
            for name, weight in made.everything.named_parameters()
            if weight.grad is not None and weight.grad.abs().sum() > 0
        }

    both = {"encoder", "src_emb_a", "src_emb_b", "decoder_a", "decoder_b"}
    assert taught(made._reconstructions(rows["a"], rows["b"])) == both
    assert taught(made._critic_parts(rows["a"], rows["b"])) == {"critic"}
    assert taught(made._generator_parts(rows["a"], rows["b"])) == both
    tuned = made._tuning_parts(rows["a"], frequent=False)
    assert taught({"recommendation": tuned["recommendation"]}) == {"src_emb_a", "recommend_a"}
    tuned = made._tuning_parts(rows["a"], frequent=True)
    assert taught(tuned) == {"encoder", "src_emb_a", "decoder_a", "recommend_a"}
    assert all(weight.requires_grad for weight in made.critic.parameters())


def test_users_of_both_domains_are_drawn_together(domains, tmp_path) -> None:
    target, source = domains
    apart = replace(source, user_ids=pl.Series([f"s{i}" for i in range(source.n_users)]))
    assert "overlap" not in trainer((target, apart), tmp_path / "apart")._generator_parts(np.arange(4), np.arange(4))
    names = [str(target.user_ids[0]), *apart.user_ids[1:].to_list()]
    joined = replace(source, user_ids=pl.Series(names))
    made = trainer((target, joined), tmp_path / "joined")
    assert made.overlap.tolist() == [[0, 0]]
    assert float(made._generator_parts(np.arange(4), np.arange(4))["overlap"].detach()) > 0
    none = SMALL.model_copy(update={"overlap_weight": 0.0})
    made = trainer((target, joined), tmp_path / "none", none)
    assert "overlap" not in made._generator_parts(np.arange(4), np.arange(4))


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3])
def test_an_interrupted_run_ends_with_the_same_bytes(domains, tmp_path, killed_at: int) -> None:
    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == killed_at:
            raise Killed

    trainer(domains, tmp_path / "once").fit()
    with pytest.raises(Killed):
        trainer(domains, tmp_path / "twice", on_epoch=kill).fit()
    torch.manual_seed(99)
    trainer(domains, tmp_path / "twice").fit()
    once, twice = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_another_seed_gives_other_weights(domains, tmp_path) -> None:
    for seed in range(2):
        trainer(domains, tmp_path / str(seed), seed=seed).fit()
    first, second = ((tmp_path / str(seed) / "best.safetensors").read_bytes() for seed in range(2))
    assert first != second


def test_a_domain_without_training_part_is_refused(domains, tmp_path) -> None:
    target, source = domains
    empty = replace(source, split=np.full_like(source.split, 2))
    with pytest.raises(DataError, match="no user has a training part"):
        trainer((target, empty), tmp_path)


def test_batches_cover_every_user_once_a_pass(domains) -> None:
    target, _ = domains
    corner = Corner(target, 9, torch.device("cpu"))
    batches = corner.batches([1, 2], 7)
    first = np.concatenate([next(batches) for _ in range(-(-len(corner) // 7))])
    assert sorted(first.tolist()) == list(range(len(corner)))
    again = corner.batches([1, 2], 7)
    assert np.array_equal(next(again), first[:7])
