"""Distillation over all items: the mask, the loss, the target by blocks, and the trainer that uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckd.config import DistillConfig
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.distill.losses import (
    CatalogueTarget,
    InBatchTarget,
    distillation_loss,
    full_softmax_loss,
    masked_log_softmax,
    unfactored_divergence,
)
from ckd.distill.masks import catalogue_mask
from ckd.distill.objective import Distillation
from ckd.distill.plan import Plan
from ckd.distill.target import CatalogueRows, TargetBuilder, measure_epsilon
from ckd.distill.trainer import Trainer
from ckd.nn import chunks
from ckd.nn.recommender import Recommender
from ckd.students import STUDENTS
from ckd.students.sasrec import SASRec, SASRecConfig

MakeTrainer = Callable[..., Trainer]

ITEMS = 11


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Few users and few items, so that both repeat."""
    g = generator(seed)
    return torch.randint(0, 3, (size,), generator=g), torch.randint(1, ITEMS, (size,), generator=g)


def draw(size: int, seed: int) -> dict[str, torch.Tensor]:
    """A student's vectors and table, a mask, and a target over the items that count; all in float64."""
    g = generator(seed)
    users, targets = batch_of(size, seed)
    mask = catalogue_mask(users, targets, users, targets, ITEMS)
    q = torch.randn(size, ITEMS, generator=g, dtype=torch.float64) * 2
    return {
        "encoded": torch.randn(size, 5, generator=g, dtype=torch.float64).requires_grad_(),
        "table": torch.randn(ITEMS, 5, generator=g, dtype=torch.float64).requires_grad_(),
        "targets": targets,
        "mask": mask,
        "log_q": q.masked_fill(~mask, -torch.inf).log_softmax(1),
    }


def given(drawn: dict[str, torch.Tensor], step: int = 3, direction: Any = "student") -> CatalogueTarget:
    return CatalogueTarget(
        lambda block: lambda rows: (drawn["log_q"][block][rows], drawn["mask"][block][rows]), step, 3.0, direction
    )


# --- which items count -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [slice(0, 9), slice(2, 5)])
def test_all_items_count_but_padding_and_the_users_other_positives(rows: slice) -> None:
    users, targets = batch_of(9, seed=1)
    mask = catalogue_mask(users[rows], targets[rows], users, targets, ITEMS)
    assert not bool(mask[:, 1:].all())
    for row, i in enumerate(range(9)[rows]):
        others = {int(targets[j]) for j in range(9) if users[j] == users[i]} - {int(targets[i])}
        assert set(mask[row].nonzero()[:, 0].tolist()) == set(range(1, ITEMS)) - others


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["student", "teacher"])
@pytest.mark.parametrize(("step", "chunk"), [(1, 1 << 18), (3, 1 << 18), (5, 2 * ITEMS), (100, 1)])
@pytest.mark.parametrize("with_ce", [True, False])
def test_the_loss_equals_its_parts_in_float64_with_gradients(
    direction: str, step: int, chunk: int, with_ce: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", chunk)
    drawn = draw(8, seed=2)
    encoded, table, targets = drawn["encoded"], drawn["table"], drawn["targets"]
    logits = 2.0 * encoded @ table.T
    p, q = logits.masked_fill(~drawn["mask"], -torch.inf).log_softmax(1), drawn["log_q"]
    a, b = (p, q) if direction == "student" else (q, p)
    counted = drawn["mask"]
    kd = (a[counted].exp() * (a[counted] - b[counted])).sum() / 8
    ce = F.cross_entropy(logits[:, 1:], targets - 1) if with_ce else torch.zeros((), dtype=torch.float64)
    expected = torch.autograd.grad(ce + 3.0 * kd, [encoded, table])
    loss, *parts = full_softmax_loss(
        encoded,
        table,
        targets if with_ce else None,
        scale=2.0,
        pad_in_softmax=False,
        distill=given(drawn, step, direction),
    )
    torch.testing.assert_close(torch.stack(parts), torch.stack([ce, kd]).detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(loss, ce + 3.0 * kd, atol=1e-12, rtol=0)
    for grad, reference in zip(torch.autograd.grad(loss, [encoded, table]), expected, strict=True):
        torch.testing.assert_close(grad, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("direction", ["student", "teacher"])
@pytest.mark.parametrize("scope", ["in-batch", "all"])
@pytest.mark.parametrize("with_ce", [True, False])
def test_gradients_pass_the_finite_difference_check(direction: Any, scope: str, with_ce: bool) -> None:
    drawn = draw(5, seed=3)
    targets = drawn["targets"]
    distill: InBatchTarget | CatalogueTarget = given(drawn, 2, direction)
    if scope == "in-batch":
        q = torch.randn(5, 5, generator=generator(4), dtype=torch.float64).log_softmax(1)
        distill = InBatchTarget(q, torch.ones(5, 5, dtype=torch.bool), 3.0, direction, targets)

    def loss(encoded: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return full_softmax_loss(encoded, table, targets if with_ce else None, scale=1.5, distill=distill)[0]

    assert torch.autograd.gradcheck(loss, (drawn["encoded"], drawn["table"]))


@pytest.mark.parametrize("direction", ["student", "teacher"])
@pytest.mark.parametrize("scope", ["in-batch", "all"])
def test_a_target_equal_to_the_students_own_distribution_changes_nothing(direction: Any, scope: str) -> None:
    drawn = draw(6, seed=5)
    encoded, table, targets = drawn["encoded"], drawn["table"], drawn["targets"]
    logits = (encoded @ table.T).detach()
    distill: InBatchTarget | CatalogueTarget
    if scope == "in-batch":
        mask = torch.ones(6, 6, dtype=torch.bool)
        distill = InBatchTarget(logits[:, targets].log_softmax(1), mask, 3.0, direction)
    else:
        own = logits.masked_fill(~drawn["mask"], -torch.inf).log_softmax(1)
        # One block of rows, so that no product is computed in another shape than above.
        distill = given({**drawn, "log_q": own}, 6, direction)
    plain = full_softmax_loss(encoded, table, targets)[0]
    loss, ce, kd = full_softmax_loss(encoded, table, targets, distill=distill)
    assert kd == 0
    assert loss == ce == plain
    for grads in zip(*(torch.autograd.grad(each, [encoded, table]) for each in (loss, plain)), strict=True):
        assert torch.equal(*grads)


def test_weight_zero_gives_the_gradients_of_cross_entropy_to_the_bit() -> None:
    drawn = draw(8, seed=6)
    encoded, table, targets = drawn["encoded"], drawn["table"], drawn["targets"]
    none = CatalogueTarget(given(drawn).block, 8, 0.0)
    plain, zero = (full_softmax_loss(encoded, table, targets, distill=distill)[0] for distill in (None, none))
    assert torch.equal(plain, zero)
    for grads in zip(*(torch.autograd.grad(each, [encoded, table]) for each in (plain, zero)), strict=True):
        assert torch.equal(*grads)


@pytest.mark.parametrize("direction", ["student", "teacher"])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_score_that_is_no_product_has_the_same_divergence(direction: str, step: int) -> None:
    drawn = draw(8, seed=7)
    encoded, table = drawn["encoded"], drawn["table"]
    asked: list[int] = []

    def score(block: torch.Tensor) -> torch.Tensor:
        asked.append(len(block))
        return block @ table.T

    distill = given(drawn, step, direction)
    kd = unfactored_divergence(score, encoded, distill)
    weighted, _, expected = full_softmax_loss(encoded, table, None, distill=distill)
    torch.testing.assert_close(kd.double(), expected, atol=1e-6, rtol=1e-6)
    pairs = zip(*(torch.autograd.grad(each, [encoded, table]) for each in (3.0 * kd, weighted)), strict=True)
    for grad, reference in pairs:
        torch.testing.assert_close(grad, reference, atol=1e-5, rtol=1e-5)
    # Once forward, and once more for the gradient: nothing was kept.
    assert max(asked) <= step
    assert sum(asked) == 2 * len(encoded)


# --- the target ------------------------------------------------------------------------------------------------------


def rows_of(builder: TargetBuilder, size: int = 24, seed: int = 8, rows: slice = slice(None)) -> CatalogueRows:
    """Three teachers with vectors of different sizes."""
    g = generator(seed)
    users, targets = batch_of(size, seed)
    vectors = [torch.randn(size, 3 + k, generator=g) for k in range(3)]
    tables = [torch.randn(ITEMS, 3 + k, generator=g) for k in range(3)]
    return CatalogueRows(builder, [v[rows] for v in vectors], tables, users[rows], targets[rows], users, targets)


def builder_of(**config: Any) -> TargetBuilder:
    return TargetBuilder(DistillConfig(**config), ["a", "b", "c"], [3.0, 2.0, 1.0], [1.0, 0.5, 2.0], epsilon=0.0)


@pytest.mark.parametrize("consistency", ["instance", "pair", "off"])
@pytest.mark.parametrize("normalisation", ["softmax", "minmax", "zscore"])
def test_blocks_of_rows_give_the_target_of_the_whole(consistency: str, normalisation: str) -> None:
    builder = builder_of(consistency=consistency, normalisation=normalisation)
    builder.epsilon = measure_epsilon(builder, [rows_of(builder).scores(slice(0, 24))], 0.5)
    whole = rows_of(builder)
    log_q, mask = whole.block(slice(0, 24))(slice(None))
    direct = builder(*whole.scores(slice(0, 24)))
    assert torch.equal(log_q, direct.log_q)
    assert torch.all(torch.isneginf(log_q) == ~mask)
    torch.testing.assert_close(log_q.exp().sum(dim=1), torch.ones(24))
    parts = rows_of(builder)
    # Blocks of the products, each in chunks of two rows.
    made = [(parts.block(slice(start, start + 5)), range(start, min(start + 5, 24), 2)) for start in range(0, 24, 5)]
    blocks = [target(slice(at - rows.start, at - rows.start + 2)) for target, rows in made for at in rows]
    torch.testing.assert_close(torch.cat([q for q, _ in blocks]), log_q)
    assert torch.equal(torch.cat([m for _, m in blocks]), mask)
    torch.testing.assert_close(parts.dropped, direct.dropped)
    assert (float(parts.dropped.sum()) > 0) == (consistency != "off")
    # A process that has some rows of the batch has the same targets for them.
    torch.testing.assert_close(rows_of(builder, rows=slice(4, 9)).block(slice(0, 5))(slice(None))[0], log_q[4:9])


def test_one_teacher_at_another_temperature_in_float64() -> None:
    builder = TargetBuilder(DistillConfig(), ["a"], [1.0], [0.07 / 0.2], epsilon=0.0)
    g = generator(9)
    users, targets = batch_of(6, seed=9)
    u, e = torch.randn(6, 4, generator=g), torch.randn(ITEMS, 4, generator=g)
    rows = CatalogueRows(builder, [u / 0.07], [e], users, targets, users, targets)
    log_q, mask = rows.block(slice(0, 6))(slice(None))
    expected = (u.double() @ e.double().T / 0.2).masked_fill(~mask, -torch.inf).log_softmax(1)
    torch.testing.assert_close(log_q.double(), expected, atol=1e-4, rtol=1e-5)


def test_blocks_shrink_as_catalogue_and_teachers_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 16 * ITEMS * 5)
    assert rows_of(builder_of()).step == 5
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 1)
    assert rows_of(builder_of()).step == 1


# --- in the loop -----------------------------------------------------------------------------------------------------


class DrawnVectors:
    """Stored vectors of teachers for every training instance and item, drawn once."""

    def __init__(self, plan: Plan, domain: Domain, teachers: int) -> None:
        rng = np.random.default_rng(1)
        count = len(domain.instances("train"))
        self.plan = plan
        self.users = [rng.normal(size=(count, 4 + k)).astype(np.float32) * 2 for k in range(teachers)]
        self.tables = [
            torch.from_numpy(rng.normal(size=(domain.n_items + 1, 4 + k)).astype(np.float32)) for k in range(teachers)
        ]

    def stream(self, batch_ids: Iterable[int], *, dtype: None = None) -> Iterator[tuple[int, list[np.ndarray]]]:
        for batch_id in batch_ids:
            yield batch_id, [users[self.plan.batch(batch_id)] for users in self.users]


def teach(trainer: Trainer, weight: float = 2.5) -> Trainer:
    """The trainer with three teachers over the catalogue, half of whose instances keep all of them."""
    vectors = DrawnVectors(trainer.plan, trainer.domain, 3)
    builder = builder_of()
    trainer.objective.distillation = Distillation(vectors, builder, weight, tables=vectors.tables) if weight else None
    trainer.objective.tables = vectors.tables if weight else []
    step = trainer._prepare(next(vectors.stream([0])))
    rows = CatalogueRows(builder, step.scores, vectors.tables, step.users, step.items, step.users, step.items)
    builder.epsilon = measure_epsilon(builder, [rows.scores(slice(None))], 0.5)
    return trainer


def reference(trainer: Trainer) -> tuple[float, float]:
    """CE and KL of the first batch over the catalogue, all scores at once."""
    assert trainer.objective.distillation is not None
    step = trainer._prepare(next(iter(trainer.objective.distillation.scores.stream([0], dtype=None))))
    target = trainer.objective.target(step)
    assert isinstance(target, CatalogueRows)
    log_q, mask = target.block(slice(0, len(step.batch)))(slice(None))
    with torch.no_grad():
        scores = trainer.model.score_items(trainer.model.encode(step.batch)).float() * trainer.model.logit_scale
    kd = distillation_loss(masked_log_softmax(scores, mask), log_q)
    return float(F.cross_entropy(scores, step.batch.targets)), float(kd)


ONE_BATCH = {"batch_size": 512, "buckets": 1, "epochs": 1}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


class Unfactored(SASRec):
    """The same scores, from a model that says they are no product."""

    factored = False

    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        table = self.item_embedding.weight
        return encoded @ (table if items is None else table[items]).T


class OwnLoss(SASRec):
    """Brings its own training loss."""

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        return encoded.square().sum() * 0 + 7.0


@pytest.mark.parametrize("kind", [SASRec, Unfactored, OwnLoss])
@pytest.mark.parametrize("ce", ["full", "in-batch"])
def test_the_first_loss_is_the_configured_one(
    make_trainer: MakeTrainer, tmp_path: Path, kind: type[SASRec], ce: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = kind(SASRecConfig(hidden_size=8, inner_size=8, n_layers=1, n_heads=2, **NO_DROPOUT), 20, max_length=50)
    trainer = teach(make_trainer(tmp_path, model=model, plan=ONE_BATCH, ce=ce))
    full, kd = reference(trainer)
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 16 * 21 * 7)
    (row,) = trainer.fit().rows
    assert row["kd"] == pytest.approx(kd, rel=1e-5)
    assert row["loss"] == pytest.approx(row["ce"] + 2.5 * kd, rel=1e-5)
    assert sum(row[f"dropped_{name}"] for name in "abc") == pytest.approx(0.5, abs=0.1)
    assert trainer.objective.targets.get(0) is None
    if kind is OwnLoss:
        assert row["ce"] == 7.0
    elif ce == "full":
        assert row["ce"] == pytest.approx(full, rel=1e-5)


def test_lambda_zero_is_the_base_model(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """As configured, and as the trainer has it."""
    vectorless = make_trainer(tmp_path / "base")
    zero = make_trainer(tmp_path / "zero")
    vectors = DrawnVectors(zero.plan, zero.domain, 3)
    zero = Trainer(
        zero.model,
        zero.domain,
        zero.plan,
        zero.config,
        tmp_path / "zero",
        {},
        Distillation(vectors, builder_of(scope="all"), 0.0, tables=vectors.tables),
        seed=0,
    )
    some = teach(make_trainer(tmp_path / "some"), weight=1.0)
    weights = []
    for trainer in (vectorless, zero, some):
        trainer.fit()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    base, same, other = weights
    assert all(torch.equal(a, b) for a, b in zip(base, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(base, other, strict=True))


def test_bf16_stays_close(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    rows = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(tmp_path / precision, plan=ONE_BATCH, student=NO_DROPOUT, precision=precision)
        rows += teach(trainer).fit().rows
    assert rows[0]["kd"] != rows[1]["kd"]
    assert rows[1]["kd"] == pytest.approx(rows[0]["kd"], rel=0.02)


@pytest.mark.parametrize("name", sorted(STUDENTS.names()))
def test_every_student_is_distilled_over_all_items(
    make_trainer: MakeTrainer, tiny: dict[str, Domain], tmp_path: Path, name: str
) -> None:
    domain = list(tiny.values())[-1]
    torch.manual_seed(1)
    student: Any = STUDENTS.get(name)
    model: Recommender = student.create(student.Config(), domain)
    trainer = teach(make_trainer(tmp_path, domain=domain, model=model, plan=ONE_BATCH))
    model.eval()
    _, expected = reference(trainer)
    assert trainer.objective.distillation is not None
    step = trainer._prepare(next(iter(trainer.objective.distillation.scores.stream([0], dtype=None))))
    parts = trainer.objective.loss(step, *model(step.batch), trainer.objective.target(step))
    assert float(parts["kd"].detach()) == pytest.approx(expected, rel=1e-4)
    parts["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(grad.isfinite().all()) for grad in gradients)
