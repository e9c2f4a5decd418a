"""What a request costs: the same for a base student and the distilled one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.pipelines import serving_cost as room
from ckd.pipelines.finetune_teacher import load_teacher
from ckd.pipelines.serving_cost import ServingTable, serving_cost
from ckd.pipelines.train_student import load_student, train_student
from ckd.students import STUDENTS

Serving = tuple[Path, Domain]

BUILT_IN = [name for name in STUDENTS.names() if STUDENTS.get(name).__module__.startswith("ckd.students.")]


def test_a_distilled_student_costs_what_its_base_costs(studio: Any) -> None:
    config = studio.config.model_copy(update={"train": studio.config.train.model_copy(update={"epochs": 1})})
    for run, teachers in (("base", ()), ("distilled", studio.teachers)):
        train_student(studio.work, studio.domain.name, "sasrec", config, teachers, run=run)
    seen: list[tuple[int, int | None]] = []
    found = serving_cost(
        studio.work,
        studio.domain.name,
        ["base", "distilled", studio.teachers[0]],
        batch_sizes=(1, 8),
        repeats=2,
        device="cpu",
        progress=lambda done, total, unit, note="": seen.append((done, total)),
    )
    base, distilled, teacher = found.rows
    assert (base.kind, base.model, teacher.kind, teacher.model) == ("student", "sasrec", "teacher", "unisrec")
    for key in ("parameters", "flops", "resident_bytes", "peak_bytes"):
        assert getattr(base, key) == getattr(distilled, key)
    for row in found.rows:
        assert row.latency.keys() == {1, 8}
        assert all(0 < each.low_ms <= each.median_ms <= each.high_ms for each in row.latency.values())
    assert found.memory_ratio(distilled, 8) == found.memory_ratio(base, 8) == found.time_ratio(base, 1) == 1.0
    # It holds the items' texts besides.
    assert found.memory_ratio(teacher, 8) > 1
    assert seen == [(done, 24) for done in range(1, 25)]
    values = json.loads(json.dumps(found.as_dict()))["rows"][1]
    assert values["memory_ratio"] == {"1": 1.0, "8": 1.0}
    assert values["user_ms"]["8"] == pytest.approx(values["latency"]["8"]["median_ms"] / 8)


def test_what_lies_ready_is_weights_buffers_and_the_vectors_of_items(studio: Any) -> None:
    run = studio.teachers[0]
    (row,) = serving_cost(studio.work, studio.domain.name, [run], batch_sizes=(1,), repeats=1, device="cpu").rows
    model, _, _ = load_teacher(studio.work, studio.domain, run)
    own = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert own > 4 * row.parameters
    assert row.resident_bytes >= own + 4 * studio.domain.n_items * model.config.hidden_size


def test_requests_before_the_first_that_counts_are_not_counted(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each size they come first: whatever these take, the others' median and quartiles do not show it."""
    asked: dict[tuple[str, int], int] = {}

    def timed(self: Any, batch: Any) -> float:
        key = self.run, len(batch)
        asked[key] = asked.get(key, 0) + 1
        return 100.0 if asked[key] <= room.WARM_UP else len(batch) / 1000

    monkeypatch.setattr(room._Served, "timed", timed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    found = serving_cost(*_of(serving), ["sasrec", "fm"], batch_sizes=(1, 4), repeats=3, device="cpu")
    assert set(asked.values()) == {room.WARM_UP + 3}
    assert [row.latency for row in found.rows] == [{size: room.Latency(*[size * 1.0] * 3) for size in (1, 4)}] * 2
    assert (found.threads, found.repeats) == (5, 3)


def test_a_request_is_for_the_ten_best_items(serving: Serving) -> None:
    work, domain = serving
    batch = room._batch(domain, 3)
    found = room._Served(work, domain, "gru4rec", batch, torch.device("cpu")).request(batch)
    model, _ = load_student(work, domain, "gru4rec")
    with torch.no_grad():
        scores = model.score_items(model.encode(batch))[:, 1:]
    assert found.tolist() == (1 + scores.topk(10, dim=1).indices).tolist()


def test_every_student_can_be_measured(serving: Serving) -> None:
    found = serving_cost(*_of(serving), BUILT_IN, batch_sizes=(1,), repeats=1, device="cpu")
    for row in found.rows:
        assert row.peak_bytes[1] > row.resident_bytes >= 4 * row.parameters
        # At the least a product of vectors of eight with every item.
        assert row.flops >= 2 * 8 * found.n_items


def test_operations_and_bytes_are_those_of_the_layers(serving: Serving) -> None:
    work, domain = serving
    (row,) = serving_cost(work, domain.name, ["gru4rec"], batch_sizes=(1,), repeats=1, device="cpu").rows
    d, hidden, layers = 8, 12, 2
    table = (domain.n_items + 1) * d
    recurrent = [3 * hidden * (width + hidden) for width in (d, hidden)]
    assert len(recurrent) == layers
    assert row.parameters == table + sum(recurrent) + hidden * d + d
    assert row.resident_bytes == 4 * row.parameters
    length = int(np.sort(domain.instances("test").lengths)[len(domain.instances("test")) // 2])
    # The head runs over every position; each is read at its own in training.
    assert row.flops in [
        2 * (length * sum(recurrent) + positions * hidden * d + domain.n_items * d) for positions in (1, length)
    ]


def test_live_bytes() -> None:
    counter = room._LiveBytes()
    given = torch.zeros(500)

    def work() -> None:
        first = given + 1  # 2000 bytes
        second = first * 2  # 4000
        del first
        third = second.view(10, 50) * 2  # 4000: a view is nothing of its own
        third.add_(1)
        given.add_(1)

    assert counter.peak_of(work) == 4000
    assert counter.now == 0
    with counter:
        kept = given * 2
    assert counter.now == 2000
    assert counter.peak_of(work) == 4000
    # An earlier peak is none of a later piece of work.
    assert counter.peak_of(lambda: given * 2) == 2000
    del kept
    assert counter.now == 0


def test_wrong_requests_are_refused(serving: Serving, tmp_path: Path) -> None:
    for options in ({"runs": []}, {"repeats": 0}, {"batch_sizes": ()}):
        with pytest.raises(ConfigError, match="give at least one"):
            serving_cost(*_of(serving), **{"runs": ["sasrec"], **options})
    for size in (0, 1_000_001):
        with pytest.raises(ConfigError, match=rf"^a request of {size:,} users: give from 1 to 1,000,000\.$"):
            serving_cost(*_of(serving), ["sasrec"], batch_sizes=(1, size))
    with pytest.raises(ConfigError, match=r"^train\.device='meta': "):
        serving_cost(*_of(serving), ["sasrec"], device="meta")
    with pytest.raises(DataError, match=r"no such run\. Runs of"):
        serving_cost(*_of(serving), ["nothing"])
    domain = serving[1]
    split = np.zeros_like(domain.split)
    dataclasses.replace(domain, split=split).save(tmp_path / "domains" / domain.name)
    with pytest.raises(DataError, match="no test target with a history"):
        serving_cost(tmp_path, domain.name, ["sasrec"])


def test_ratios_are_over_the_first_row() -> None:
    def row(run: str, peak: int, latency: float) -> room.ServingCost:
        return room.ServingCost(run, "student", "sasrec", 1, 1, 1, {1: peak}, {1: room.Latency.of([latency])})

    table = ServingTable("d", 3, "cpu", 1, 1, {}, (row("a", 10, 2.0), row("b", 35, 1.0)))
    assert (table.memory_ratio(table.rows[1], 1), table.time_ratio(table.rows[1], 1)) == (3.5, 0.5)


def test_latency_is_the_median_and_the_quartiles() -> None:
    assert room.Latency.of([0.004, 0.001, 0.1, 0.002, 0.003]) == room.Latency(3.0, 2.0, 4.0)


def test_operations_of_deepfm_are_those_of_every_pair(serving: Serving) -> None:
    """Also where oneDNN, whose products cannot be counted, is what computes them in fact."""
    work, domain = serving
    (row,) = serving_cost(work, domain.name, ["deepfm"], batch_sizes=(1,), repeats=1, device="cpu").rows
    user_fields, d, hidden = 2, 8, 8
    first, pairs = user_fields * d * hidden, domain.n_items * (d + 2 + hidden)
    assert row.flops == 2 * (first + pairs)


def _of(serving: Serving) -> tuple[Path, str]:
    return serving[0], serving[1].name
