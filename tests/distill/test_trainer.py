"""The training loop: what it computes, when it stops, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ckd.config import DistillConfig
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.distill import trainer as trainer_module
from ckd.distill.losses import distillation_loss, masked_log_softmax
from ckd.distill.masks import in_batch_mask
from ckd.distill.objective import Distillation
from ckd.distill.plan import FULL
from ckd.distill.target import TargetBuilder
from ckd.distill.trainer import Trainer, TrainingDiverged
from ckd.errors import StoreError
from ckd.nn.frozen import FrozenTable
from ckd.nn.recommender import Recommender
from ckd.students.sasrec import SASRec, SASRecConfig

MakeTrainer = Callable[..., Trainer]

TIMING = ("seconds", "instances_per_second", "waiting_share")


def tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(path).items() if name.startswith(prefix)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def test_the_best_model_is_that_of_the_checkpoint_whatever_an_epoch_taken_again_gives(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """A kill after the best model of an epoch, before its checkpoint; other processes then take the epoch again."""
    cut = make_trainer(tmp_path, seed=5)
    saves: list[Any] = []

    def killed(row: dict[str, Any]) -> None:
        Trainer._save_best(cut, row)
        saves.append((row["epoch"], (tmp_path / "best.safetensors").read_bytes()))
        if len(saves) == 2:
            raise KeyboardInterrupt

    cut._save_best = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    ours, theirs = saves
    assert (tmp_path / "best.safetensors").read_bytes() == theirs[1] != ours[1]
    again = make_trainer(tmp_path, seed=5)
    # Nothing after the kill is as good as what the checkpoint counts.
    again.validate = lambda: {"ndcg@10": 0.0, "recall@10": 0.0}  # type: ignore[method-assign]
    assert again.fit().best_epoch == ours[0]
    assert (tmp_path / "best.safetensors").read_bytes() == ours[1]
    assert json.loads((tmp_path / "best.json").read_text())["log"]["epoch"] == ours[0]
    assert not list(tmp_path.glob(".former*"))


# --- the same run twice, and lambda 0 --------------------------------------------------------------------------------


@pytest.mark.parametrize("teachers", [0, 3])
def test_the_same_seed_gives_the_same_weights_to_the_bit(
    make_trainer: MakeTrainer, tmp_path: Path, teachers: int
) -> None:
    runs = [make_trainer(tmp_path / name, seed=5, teachers=teachers).fit() for name in ("one", "two")]
    assert same(tensors(tmp_path / "one" / "last.safetensors"), tensors(tmp_path / "two" / "last.safetensors"))
    assert (tmp_path / "one" / "best.safetensors").read_bytes() == (tmp_path / "two" / "best.safetensors").read_bytes()
    assert timeless(runs[0].rows) == timeless(runs[1].rows)
    make_trainer(tmp_path / "other", seed=6, teachers=teachers).fit()
    assert not same(tensors(tmp_path / "one" / "best.safetensors"), tensors(tmp_path / "other" / "best.safetensors"))


def test_lambda_zero_is_the_base_model(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainers = {
        "base": make_trainer(tmp_path / "base"),
        "zero": make_trainer(tmp_path / "zero", teachers=3, weight=0.0),
        "some": make_trainer(tmp_path / "some", teachers=3, weight=1e-3),
    }
    rows = {name: trainer.fit().rows for name, trainer in trainers.items()}
    gradients = {name: [p.grad for p in trainer.model.parameters()] for name, trainer in trainers.items()}
    assert timeless(rows["zero"]) == timeless(rows["base"])
    last = {name: tensors(tmp_path / name / "last.safetensors") for name in trainers}
    assert same(last["zero"], last["base"])
    assert all(torch.equal(a, b) for a, b in zip(gradients["zero"], gradients["base"], strict=True))
    assert not same(last["some"], last["base"])
    assert "kd" not in rows["zero"][0]
    assert "kd" in rows["some"][0]


def test_the_model_that_is_left_is_the_best_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    scripted = iter([0.1, 0.4, 0.2, 0.3])
    trainer.validate = lambda: {"ndcg@10": next(scripted)}  # type: ignore[method-assign]
    kept: list[dict[str, torch.Tensor]] = []
    trainer.on_epoch = lambda row: kept.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
    trained = trainer.fit()
    assert (trained.best_epoch, trained.metrics) == (1, {"ndcg@10": 0.4})
    assert same(dict(trainer.model.state_dict()), kept[1])
    assert same(tensors(tmp_path / "best.safetensors"), kept[1])
    assert not same(kept[1], kept[3])


# --- what a step computes --------------------------------------------------------------------------------------------

ONE_BATCH = {"batch_size": 512, "buckets": 1, "epochs": 1}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


@pytest.mark.parametrize("ce", ["full", "in-batch", "in-batch-logq"])
def test_the_first_loss_is_the_configured_one(make_trainer: MakeTrainer, tmp_path: Path, ce: str) -> None:
    trainer = make_trainer(tmp_path, plan=ONE_BATCH, student=NO_DROPOUT, ce=ce)
    domain = trainer.domain
    ids = trainer.plan.batch(0)
    batch = trainer.batches(ids)
    with torch.no_grad():
        table = trainer.model.item_table().double()
        scores = trainer.model.encode(batch).double() @ table.T
    expected = []
    for i in range(len(ids)):
        target = int(batch.targets[i])
        if ce == "full":
            row, at = scores[i], target
        else:
            # The batch's distinct items, but those that are other positives of this user.
            own = {int(t) for t, u in zip(batch.targets, batch.users, strict=True) if u == batch.users[i]} - {target}
            items = [item for item in sorted({int(t) for t in batch.targets}) if item not in own]
            row, at = scores[i, items], items.index(target)
            if ce == "in-batch-logq":
                share = np.bincount(domain.instances("train").targets, minlength=domain.n_items + 1)
                share = share[items] / share.sum()
                row = row - torch.from_numpy(np.log(1 - (1 - share) ** len(ids)))
        expected.append(float(row.logsumexp(0) - row[at]))
    (row,) = trainer.fit().rows
    assert row["ce"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert row["loss"] == row["ce"]
    assert row["instances"] == len(ids)


def test_the_first_distilled_loss_is_the_papers(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, plan=ONE_BATCH, student=NO_DROPOUT, teachers=3, weight=2.5)
    assert trainer.objective.distillation is not None
    step = trainer._prepare(next(iter(trainer.objective.distillation.scores.stream([0]))))  # type: ignore[arg-type]
    assert step.mask is not None
    builder = trainer.objective.distillation.target
    builder.epsilon = float(builder.disagreement(step.scores, step.mask).median())
    target = builder(step.scores, step.mask)
    with torch.no_grad():
        encoded, table = trainer.model(step.batch)
        log_p = masked_log_softmax(encoded @ table[step.batch.targets].T, step.mask)
    kd = float(distillation_loss(log_p, target.log_q))
    (row,) = trainer.fit().rows
    assert row["kd"] == pytest.approx(kd, rel=1e-5)
    assert row["loss"] == pytest.approx(row["ce"] + 2.5 * kd, rel=1e-5)
    assert [row[f"dropped_teacher-{k}"] for k in range(3)] == pytest.approx(target.dropped.tolist())
    assert sum(target.dropped.tolist()) == pytest.approx(0.5, abs=0.1)


def test_a_batch_that_comes_again_has_its_target_already(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(users: np.ndarray, targets: np.ndarray) -> np.ndarray:
        made.append(len(users))
        return in_batch_mask(users, targets)

    monkeypatch.setattr(trainer_module, "in_batch_mask", counted)
    rows, masks = [], []
    for memory in (1 << 30, 0):
        monkeypatch.setattr(trainer_module, "TARGET_MEMORY", memory)
        made.clear()
        trainer = make_trainer(tmp_path / str(memory), teachers=3, plan={"pool": 1, "buckets": 1, "epochs": 3})
        rows.append(timeless(trainer.fit().rows))
        masks.append(len(made))
    assert rows[0] == rows[1]
    assert masks == [trainer.plan.n_batches, 3 * trainer.plan.n_batches]


class Unfactored(SASRec):
    """The same scores, from a model that says they are no product."""

    factored = False

    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        table = self.item_embedding.weight
        return encoded @ (table if items is None else table[items]).T


@pytest.mark.parametrize("ce", ["full", "in-batch"])
def test_a_model_that_does_not_factor_trains_alike(make_trainer: MakeTrainer, tmp_path: Path, ce: str) -> None:
    config = SASRecConfig(hidden_size=8, inner_size=8, n_layers=1, n_heads=2)
    rows = []
    for number, kind in enumerate((SASRec, Unfactored)):
        torch.manual_seed(0)
        model = kind(config, n_items=20, max_length=50)
        rows.append(make_trainer(tmp_path / str(number), model=model, teachers=3, ce=ce).fit().rows)
    for a, b in zip(*rows, strict=True):
        assert a["ce"] == pytest.approx(b["ce"], rel=1e-4)
        assert a["kd"] == pytest.approx(b["kd"], rel=1e-3)


class OwnLoss(SASRec):
    """Brings its own training loss."""

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        return encoded.square().sum() * 0 + 7.0


def test_a_models_own_loss_comes_first(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    model = OwnLoss(SASRecConfig(hidden_size=8, inner_size=8, n_layers=1, n_heads=2), n_items=20, max_length=50)
    assert make_trainer(tmp_path, model=model).fit().rows[0]["ce"] == 7.0


class OverFrozen(Recommender):
    """Averages frozen vectors of the history's items through a trained projection; one layer is frozen as well."""

    causal = False

    def __init__(self, n_items: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = FrozenTable(torch.randn(n_items + 1, 6, generator=generator))
        self.still = nn.Linear(6, 6)
        self.still.requires_grad_(False)
        self.project = nn.Linear(6, 6)

    def encode(self, batch: Batch) -> torch.Tensor:
        histories = batch.histories()
        return self.project(self.still(self.table(histories)).sum(dim=1) / batch.lengths[:, None])

    def item_table(self) -> torch.Tensor:
        return self.table.weight


def test_what_is_frozen_stays_and_leaves_no_copy(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OverFrozen(20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = model.table.weight.clone()
    make_trainer(tmp_path, model=model, clip_norm=1.0, teachers=1).fit()
    assert torch.equal(model.table.weight, table)
    after = tensors(tmp_path / "best.safetensors")
    assert after.keys() == before.keys()
    assert not any(name.startswith("table") for name in after)
    assert all(torch.equal(after[name], before[name]) == name.startswith("still") for name in after)
    assert not any("still" in name for name in tensors(tmp_path / "last.safetensors", "optimizer."))


def test_gradients_are_clipped(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    norms: list[float] = []

    def note(*_: Any) -> None:
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    trainer = make_trainer(tmp_path / "clipped", clip_norm=1e-3, on_step=note)
    trainer.fit()
    assert max(norms) <= 1e-3 * (1 + 1e-4)
    norms.clear()
    trainer = make_trainer(tmp_path / "free", on_step=note)
    trainer.fit()
    assert min(norms) > 1e-2


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    exact = make_trainer(tmp_path / "fp32", teachers=3, student=NO_DROPOUT).fit()
    rough = make_trainer(tmp_path / "bf16", teachers=3, student=NO_DROPOUT, precision="bf16").fit()
    for a, b in zip(exact.rows, rough.rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
    assert exact.rows[0]["loss"] != rough.rows[0]["loss"]
    assert {value.dtype for value in tensors(tmp_path / "bf16" / "best.safetensors").values()} == {torch.float32}


def test_distillation_pulls_the_student_to_its_teacher(
    make_trainer: MakeTrainer, make_domain: Callable[..., Domain], tmp_path: Path
) -> None:
    """The teacher prefers items by the history's last item: a student can learn that, and base training does not."""
    domain = make_domain([6] * 60, n_items=12)
    instances = domain.instances("train")
    last = domain.items[instances.stops - 1]
    taste = np.random.default_rng(0).normal(size=(13, 13)) * 3

    class Tastes:
        def stream(self, batch_ids: Any, *, dtype: None) -> Any:
            for batch_id in batch_ids:
                ids = trainer.plan.batch(batch_id)
                logits = taste[last[ids]][:, instances.targets[ids]]
                yield batch_id, [(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)]

    def run(name: str, weight: float) -> list[float]:
        nonlocal trainer
        trainer = make_trainer(
            tmp_path / name,
            domain=domain,
            plan={"batch_size": 64, "buckets": 1, "epochs": 25},
            student={**NO_DROPOUT, "hidden_size": 16, "inner_size": 16},
            lr=0.02,
            patience=100,
        )
        builder = TargetBuilder(DistillConfig(), ["one"], [1.0], [1.0], epsilon=0.0)
        trainer.objective.distillation = Distillation(Tastes(), builder, weight)
        return [row["kd"] for row in trainer.fit().rows]

    trainer = make_trainer(tmp_path / "unused")
    taught, untaught = run("taught", 20.0), run("untaught", 1e-9)
    assert taught[0] > 1.0
    assert taught[-1] < 0.15 * taught[0]
    assert taught[-1] < 0.15 * untaught[-1]


# --- when it stops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_counts_full_epochs_only(make_trainer: MakeTrainer, tmp_path: Path, patience: int) -> None:
    plan = {"buckets": 3, "epochs_per_stage": 2, "epochs": 30}
    trainer = make_trainer(tmp_path, plan=plan, patience=patience)
    trainer.validate = lambda: {"ndcg@10": 0.25}  # type: ignore[method-assign]
    rows = trainer.fit().rows
    assert [row["stage"] for row in rows] == [1, 1, 2, 2, 3, 3, *[FULL] * patience]
    assert trainer.state.finished
    assert trainer.state.best_epoch == 0


def test_a_better_epoch_starts_the_count_anew(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, plan={"buckets": 1, "epochs": 30}, patience=2)
    scripted = iter([0.1, 0.1, 0.2, 0.2, 0.2, 0.9])
    trainer.validate = lambda: {"ndcg@10": next(scripted)}  # type: ignore[method-assign]
    assert len(trainer.fit().rows) == 5


def test_epochs_and_validations_are_as_configured(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trained = make_trainer(tmp_path, plan={"epochs": 20}, epochs=6, validate_every=4).fit()
    assert [row["epoch"] for row in trained.rows] == list(range(6))
    # Every fourth, and the last one whatever its number.
    assert [row["epoch"] for row in trained.rows if "valid_ndcg@10" in row] == [0, 4, 5]
    assert make_trainer(tmp_path / "more", plan={"epochs": 2}, epochs=9).fit().rows[-1]["epoch"] == 1


@pytest.mark.parametrize(
    ("value", "loss", "checkpoint_steps"), [(math.nan, "nan", None), (1e8, r"\d{6,}", None), (math.nan, "", 1)]
)
def test_a_diverging_loss_stops_with_what_one_needs_to_know(
    make_trainer: MakeTrainer, tmp_path: Path, value: float, loss: str, checkpoint_steps: int | None
) -> None:
    def poison(epoch: int, step: int, *_: Any) -> None:
        if (epoch, step) == (1, 2):
            with torch.no_grad():
                trainer.model.item_embedding.weight.normal_().mul_(value)  # type: ignore[union-attr,operator]

    trainer = make_trainer(tmp_path, on_step=poison, checkpoint_steps=checkpoint_steps, student=NO_DROPOUT)
    with pytest.raises(TrainingDiverged) as raised:
        trainer.fit()
    error = raised.value
    last = tmp_path / "last.safetensors"
    if checkpoint_steps:
        # Caught before a checkpoint of it could be written.
        assert re.search(r"item_embedding\.weight is not finite after step 2 of epoch 1", str(error))
    else:
        batch = int(trainer.plan.schedule_of(1)[1][2])
        assert re.search(rf"loss {loss}\S* at epoch 1, step 2, batch {batch} ", str(error))
    assert f"last good checkpoint: {last}." in str(error)
    assert all(bool(torch.isfinite(value).all()) for value in tensors(last, "model.").values())
    assert [thread.name for thread in threading.enumerate() if thread.name == "ckd-ahead"] == []
    finished = make_trainer(tmp_path, checkpoint_steps=checkpoint_steps, student=NO_DROPOUT).fit()
    assert [row["epoch"] for row in finished.rows] == [0, 1, 2, 3]


def test_diverging_at_once_leaves_no_good_checkpoint(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, teachers=1, weight=math.inf)
    with pytest.raises(TrainingDiverged, match=r"step 0, batch \d+ .*last good checkpoint: none\."):
        trainer.fit()
    assert not (tmp_path / "last.safetensors").exists()


def test_a_batch_is_tied_to_its_instances_at_every_step(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, teachers=1)
    plan, reads = trainer.plan, []

    def swapped(block: int) -> Any:
        reads.append(block)
        ids = plan.read_block(block).copy()
        ids[[0, -1]] = ids[[-1, 0]]
        return ids

    trainer.plan = replace(plan, read_block=swapped)
    with pytest.raises(StoreError, match=r"batch \d+ has instances of hash [0-9a-f]{16}, the plan says [0-9a-f]{16}"):
        trainer.fit()
    assert reads
    assert not (tmp_path / "best.safetensors").exists()
