"""Planning into a work folder, the table and the figure of a plan, and plans on stored scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ckd.config import PlanConfig, RunConfig
from ckd.data.domain import Domain
from ckd.distill.difficulty import Samples
from ckd.distill.plan import FULL, Plan, build_plan
from ckd.errors import ConfigError, DataError, StoreError
from ckd.pipelines.finetune_teacher import teacher_fingerprint
from ckd.pipelines.plan import describe, draw, estimate, load_plan, make_plan, plan_ids, preview
from ckd.pipelines.score_binding import index_of
from ckd.pipelines.teacher_difficulty import teacher_difficulty
from ckd.pipelines.workspace import domain_folder, scores_folder, teacher_folder
from ckd.store.binding import Binding
from ckd.store.writer import write_store


@pytest.fixture
def work(small_domain: Domain, tmp_path: Path) -> Path:
    small_domain.save(domain_folder(tmp_path, "made"))
    return tmp_path


def run_config(seed: int = 3, **plan: Any) -> RunConfig:
    return RunConfig(seed=seed, plan=PlanConfig(**{"batch_size": 64, "buckets": 3, "epochs": 5, **plan}))


def test_a_plan_is_made_once(work: Path) -> None:
    calls: list[tuple[int, int | None, str]] = []
    first = make_plan(work, "made", run_config(), lambda done, total, unit, note="": calls.append((done, total, unit)))
    assert first.folder == work / "plans" / "made" / first.plan.fingerprint[:12]
    assert not first.reused
    assert calls == [(i + 1, 4, "compositions") for i in range(4)]
    written = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = make_plan(work, "made", run_config())
    assert again.reused
    assert (again.folder, again.plan.fingerprint) == (first.folder, first.plan.fingerprint)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == written
    assert not make_plan(work, "made", run_config(seed=4)).reused
    assert not make_plan(work, "made", run_config(epochs=6)).reused
    assert len(plan_ids(work, "made")) == 3


def test_a_damaged_plan_is_neither_used_nor_replaced(work: Path) -> None:
    planned = make_plan(work, "made", run_config())
    (planned.folder / "batches.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="damaged plan"):
        make_plan(work, "made", run_config())
    assert (planned.folder / "batches.parquet").read_bytes() == b"PAR1"


def test_other_files_among_the_plans_do_not_disturb(work: Path) -> None:
    (work / "plans" / "made" / "junk").mkdir(parents=True)
    (work / "plans" / "made" / "junk" / "plan.json").write_text("no JSON")
    (work / "plans" / "made" / "old").mkdir()
    (work / "plans" / "made" / "old" / "plan.json").write_text('{"format": 0}')
    assert not make_plan(work, "made", run_config()).reused


def test_planning_needs_a_domain(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared domain"):
        make_plan(tmp_path, "absent", run_config())


def test_the_only_plan_needs_no_name(work: Path, small_domain: Domain) -> None:
    with pytest.raises(StoreError, match="no plan here"):
        load_plan(work, small_domain)
    one = make_plan(work, "made", run_config()).plan
    assert load_plan(work, small_domain).fingerprint == one.fingerprint
    two = make_plan(work, "made", run_config(seed=4)).plan
    with pytest.raises(StoreError, match=r"2 plans \(.*\). Name one"):
        load_plan(work, small_domain)
    assert load_plan(work, small_domain, two.id).fingerprint == two.fingerprint
    with pytest.raises(StoreError, match=f"Did you mean '{one.id}'"):
        load_plan(work, small_domain, one.id[:-1])


def test_a_plan_of_another_content_is_refused(
    work: Path, small_domain: Domain, make_domain: Callable[..., Domain]
) -> None:
    make_plan(work, "made", run_config())
    other = make_domain([9] * 50)
    with pytest.raises(StoreError, match=f"{small_domain.fingerprint}.*made has {other.fingerprint}"):
        load_plan(work, other)


@pytest.mark.parametrize("layout", ["user", "instance"])
def test_the_table_says_what_each_stage_trains_on(small_domain: Domain, layout: str) -> None:
    config = run_config(layout=layout, epochs=9, epochs_per_stage=2, pool=2).plan
    plan = build_plan(small_domain, config, 0)
    rows = describe(plan)
    assert [(row.stage, row.epochs, row.buckets) for row in rows] == [
        ("1", 2, "1"),
        ("2", 2, "1-2"),
        ("3", 2, "1-3"),
        ("full", 3, "1-3"),
    ]
    samples = Samples.of(small_domain, small_domain.instances("train"), config.layout)
    owner = np.repeat(np.arange(len(samples)), np.diff(samples.indptr))
    for row, epoch in zip(rows, (0, 2, 4, 6), strict=True):
        batches = plan.schedule_of(epoch)[1]
        ids = np.concatenate([plan.batch(b) for b in batches])
        chosen = np.unique(owner[ids])
        assert (row.batches, row.instances, row.samples) == (len(batches), len(ids), len(chosen))
        assert row.length == pytest.approx(samples.lengths[chosen].mean())
        assert row.popularity == pytest.approx(samples.popularity[chosen].mean())
        ssl = samples.lengths / samples.lengths.max() - config.alpha * samples.popularity
        assert row.difficulty == pytest.approx(ssl[chosen].mean())
    assert rows[0].difficulty < rows[1].difficulty < rows[2].difficulty == rows[3].difficulty  # type: ignore[operator]


def test_the_table_without_a_curriculum(small_domain: Domain) -> None:
    (row,) = describe(build_plan(small_domain, run_config(difficulty="none").plan, 0))
    assert (row.stage, row.epochs, row.buckets, row.difficulty) == ("full", 5, "1", None)
    assert row.instances == len(small_domain.instances("train"))


def test_the_estimate_counts_every_score(small_domain: Domain) -> None:
    plan = build_plan(small_domain, run_config().plan, 0)
    found = estimate(plan, small_domain.n_items, dim=16)
    rows = sum(len(plan.batch(i)) for i in range(plan.n_batches))
    scores = sum(len(plan.batch(i)) ** 2 for i in range(plan.n_batches))
    assert (found.batches, found.rows, found.scores) == (plan.n_batches, rows, scores)
    assert found.bytes == {
        "f16": int(1.54 * scores),
        "tensor": 2 * scores,
        "u8": scores + 8 * rows,
        "vectors": 32 * (plan.n_instances + small_domain.n_items),
    }


def test_a_preview_writes_nothing(work: Path, small_domain: Domain) -> None:
    before = sorted(work.rglob("*"))
    found = preview(work, "made", run_config())
    assert sorted(work.rglob("*")) == before
    plan = make_plan(work, "made", run_config()).plan
    assert found == estimate(plan, small_domain.n_items, dim=300)


@pytest.mark.parametrize(
    ("ending", "change"),
    [
        ("svg", {}),
        ("pdf", {}),
        ("png", {}),
        ("png", {"difficulty": "none"}),
        ("png", {"buckets": 14, "epochs": 20}),
        ("png", {"epochs": 2}),
    ],
    ids=str,
)
def test_the_figure_is_drawn_and_the_same_every_time(
    small_domain: Domain, tmp_path: Path, ending: str, change: dict[str, Any]
) -> None:
    plan = build_plan(small_domain, run_config(**change).plan, 0)
    one, two = (draw(plan, tmp_path / f"{name}.{ending}", title="made") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    if ending == "png":
        with Image.open(one) as image:
            assert min(image.size) > 500
            assert len(image.convert("L").getcolors()) > 20  # type: ignore[arg-type]
    else:
        assert one.read_bytes().startswith(b"<?xml" if ending == "svg" else b"%PDF")


@pytest.mark.parametrize("name", ["plan.gif", "plan"])
def test_other_pictures_are_refused(small_domain: Domain, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="Known: png, svg, pdf"):
        draw(build_plan(small_domain, run_config().plan, 0), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def score(work: Path, domain: Domain, plan: Plan, teacher: str, number: int) -> None:
    """A teacher with its scores of the plan: the logits of one batch are drawn from its id."""
    folder = teacher_folder(work, "made", teacher)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(teacher.encode())
    (folder / "teacher.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"identity": {"domain": domain.fingerprint}}))

    def log_scores(batch_ids: range) -> Iterator[tuple[int, np.ndarray]]:
        for batch_id in batch_ids:
            n = int(plan.sizes[batch_id])
            z = np.random.default_rng([number, batch_id]).normal(size=(n, n))
            yield batch_id, (z - np.log(np.exp(z).sum(axis=1, keepdims=True))).astype(np.float32)

    binding = Binding(domain.fingerprint, plan.fingerprint, teacher_fingerprint(folder), 1.0, None, "dot")
    write_store(scores_folder(work, "made", plan.id) / teacher, binding, index_of(plan), "f16", log_scores)


@pytest.mark.parametrize("measure", ["teacher_loss", "teacher_disagreement"])
def test_a_curriculum_from_stored_scores(work: Path, small_domain: Domain, measure: str) -> None:
    base = make_plan(work, "made", run_config(difficulty="none", layout="instance")).plan
    for number, teacher in enumerate(("a", "b")):
        score(work, small_domain, base, teacher, number)
    config = run_config(difficulty=measure, layout="instance")
    with pytest.raises(ConfigError, match="needs teachers' scores"):
        make_plan(work, "made", config)
    calls: list[tuple[int, int | None]] = []
    found = teacher_difficulty(
        work, "made", ["b", "a"], progress=lambda done, total, unit, note="": calls.append((done, total))
    )
    assert calls[-1] == (base.n_batches, base.n_batches)
    planned = make_plan(work, "made", config, teacher_scores=found)
    values = found.loss if measure == "teacher_loss" else found.disagreement
    first = np.concatenate([planned.plan.batch(b) for b in planned.plan.schedule_of(0)[1]])
    assert planned.plan.schedule_of(0)[0] != FULL
    assert sorted(first.tolist()) == sorted(np.argsort(values, kind="stable")[: len(first)].tolist())
    again = teacher_difficulty(work, "made", ["a", "b"], base.id)
    assert make_plan(work, "made", config, teacher_scores=again).reused
    other = teacher_difficulty(work, "made", ["a"], base.id)
    assert other.source != found.source
    if measure == "teacher_disagreement":
        with pytest.raises(StoreError, match="no disagreement of two teachers"):
            make_plan(work, "made", config, teacher_scores=other)
    else:
        assert not make_plan(work, "made", config, teacher_scores=other).reused


def test_difficulty_from_a_teacher_without_scores(work: Path) -> None:
    make_plan(work, "made", run_config(difficulty="none"))
    with pytest.raises(DataError, match="finetune-teacher"):
        teacher_difficulty(work, "made", ["absent"])
    with pytest.raises(StoreError, match="no teacher's scores were given"):
        teacher_difficulty(work, "made", [])
