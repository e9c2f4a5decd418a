"""Domains of any shape for the plan's tests, and a trainer of anything small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ckd.config import DistillConfig, PlanConfig, TrainConfig
from ckd.data.domain import Domain, leave_one_out
from ckd.distill.objective import Distillation
from ckd.distill.parallel import ALONE, Parallel
from ckd.distill.plan import Plan, build_plan
from ckd.distill.target import TargetBuilder
from ckd.distill.trainer import Trainer
from ckd.nn.recommender import Recommender
from ckd.students.sasrec import SASRec, SASRecConfig


def _domain(lengths: Sequence[int], n_items: int = 40, seed: int = 1, history_cap: int = 50) -> Domain:
    """Users of these lengths; items by a linear congruential generator, low numbers more popular."""
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    state, items = seed * 2654435761 % 2**32, []
    for _ in range(int(indptr[-1])):
        state = (1664525 * state + 1013904223) % 2**32
        items.append(1 + (state >> 8) ** 2 * n_items // 2**48)
    table = {"item": list(range(1, n_items + 1)), "raw_id": [f"i{i}" for i in range(n_items)], "text": [""] * n_items}
    return Domain(
        name="made",
        indptr=indptr,
        items=np.array(items, dtype=np.int32),
        split=leave_one_out(indptr),
        item_table=pl.DataFrame(table),
        user_ids=pl.Series([f"u{u}" for u in range(len(lengths))], dtype=pl.String),
        history_cap=history_cap,
    )


@pytest.fixture(scope="session")
def make_domain() -> Callable[..., Domain]:
    """Builds a domain from users' sequence lengths."""
    return _domain


@pytest.fixture(scope="session")
def small_domain() -> Domain:
    """120 users of 3 to 32 items."""
    return _domain([3 + (u * u * 7 + u) % 30 for u in range(120)], n_items=60)


class DrawnScores:
    """Stored log-scores of several teachers, drawn from teacher and batch id."""

    def __init__(self, plan: Plan, teachers: int) -> None:
        self.plan = plan
        self.teachers = teachers

    def read(self, teacher: int, batch_id: int) -> np.ndarray:
        n = len(self.plan.batch(batch_id))
        logits = np.random.default_rng([teacher, batch_id]).normal(size=(n, n)) * 4
        return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)

    def stream(self, batch_ids: Iterable[int], *, dtype: None = None) -> Iterator[tuple[int, list[np.ndarray]]]:
        for batch_id in batch_ids:
            yield batch_id, [self.read(teacher, batch_id) for teacher in range(self.teachers)]


class DrawnVectors(DrawnScores):
    """Stored user vectors of several teachers, drawn from teacher and batch id; the item vectors go beside them."""

    SIZE = 4

    def read(self, teacher: int, batch_id: int) -> np.ndarray:
        shape = (len(self.plan.batch(batch_id)), self.SIZE)
        return np.random.default_rng([teacher, batch_id]).normal(size=shape).astype(np.float32)

    def tables(self, n_items: int) -> list[torch.Tensor]:
        draws = np.random.default_rng(9)
        drawn = draws.normal(size=(self.teachers, n_items + 1, self.SIZE)).astype(np.float32)
        return [torch.from_numpy(each) for each in drawn]


PLAN: dict[str, Any] = {"batch_size": 16, "buckets": 2, "epochs": 4}
STUDENT: dict[str, Any] = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2}


def build_trainer(
    folder: Path,
    *,
    seed: int = 0,
    domain: Domain | None = None,
    plan: dict[str, Any] | None = None,
    student: dict[str, Any] | None = None,
    teachers: int = 0,
    weight: float = 5.0,
    everywhere: bool = False,
    model: Recommender | None = None,
    on_step: Any = None,
    on_epoch: Any = None,
    parallel: Parallel = ALONE,
    **train: Any,
) -> Trainer:
    """A trainer of a small student with dropout, with `teachers` teachers of random scores, in-batch or everywhere."""
    domain = domain or _domain([4 + u * 7 % 9 for u in range(24)], n_items=20)
    made = build_plan(domain, PlanConfig(**{**PLAN, **(plan or {})}), seed=3)
    names = [f"teacher-{number}" for number in range(teachers)]
    target = TargetBuilder(DistillConfig(), names, [1.0] * teachers, [1.0] * teachers, epsilon=0.7) if names else None
    distillation = None
    if target is not None:
        scores = DrawnVectors(made, teachers) if everywhere else DrawnScores(made, teachers)
        tables = scores.tables(domain.n_items) if isinstance(scores, DrawnVectors) else ()
        distillation = Distillation(scores, target, weight, tables=tables)
    torch.manual_seed(seed)
    return Trainer(
        model or SASRec.create(SASRecConfig(**{**STUDENT, **(student or {})}), domain),
        domain,
        made,
        TrainConfig(device="cpu", **{"lr": 0.01, **train}),
        folder,
        {"train": {"lr": 0.01, **train}, "seed": seed},
        distillation=distillation,
        seed=seed,
        on_step=on_step,
        on_epoch=on_epoch,
        parallel=parallel,
    )


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """See `build_trainer`."""
    return build_trainer
