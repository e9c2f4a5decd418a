"""What a GPU computes is what a processor does; skipped where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from ckd.config import RunConfig
from ckd.data.batch import Batches
from ckd.distill.losses import InBatchTarget, full_softmax_loss
from ckd.distill.parallel import Parallel
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn import chunks
from ckd.pipelines.finetune_teacher import finetune_teacher
from ckd.pipelines.plan import load_plan
from ckd.pipelines.recommend import recommend
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.serving_cost import serving_cost
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.train_student import load_student, train_student
from ckd.students.gru4rec import GRU4Rec, GRU4RecConfig

GPU = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

#: Generators of a GPU draw other dropout, so that what is compared draws none.
STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def settings(config: RunConfig, device: str, **train: Any) -> RunConfig:
    values = config.model_dump(by_alias=True, exclude_unset=True)
    values["train"] = {**values["train"], "device": device, **train}
    values["student"] = {**values["student"], **STILL}
    return RunConfig.model_validate(values)


def trained(studio: Any, run: str, device: str, **options: Any) -> Any:
    train = options.pop("train", {})
    teachers = options.pop("teachers", studio.teachers)
    config = settings(studio.config, device, **train)
    return train_student(studio.work, studio.domain.name, "sasrec", config, teachers, run=run, **options)


@pytest.mark.parametrize("direction", ["student", "teacher"])
def test_the_loss_and_its_gradients(direction: Any) -> None:
    g = torch.Generator().manual_seed(3)
    encoded, table = torch.randn(33, 16, generator=g), torch.randn(301, 16, generator=g)
    targets = torch.randint(1, 301, (33,), generator=g)
    log_q = torch.randn(33, 33, generator=g).log_softmax(1)
    found = {}
    for device in ("cpu", GPU):
        e, t = (x.to(device).requires_grad_() for x in (encoded, table))
        mask = torch.ones(33, 33, dtype=torch.bool, device=device)
        target = InBatchTarget(log_q.to(device), mask, weight=2.0, direction=direction)
        loss, ce, kd = full_softmax_loss(e, t, targets.to(device), scale=3.0, distill=target)
        gradients = torch.autograd.grad(2.0 * loss, [e, t])
        found[device] = [x.detach().cpu() for x in (loss, ce, kd, *gradients)]
    for here, there in zip(found["cpu"], found[GPU], strict=True):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-3)


def test_a_base_model_learns_the_same(studio: Any) -> None:
    here, there = (trained(studio, device, device, teachers=()) for device in ("cpu", GPU))
    for mine, theirs in zip(here.trained.rows, there.trained.rows, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)


def test_a_distilled_student_learns_the_same_and_drops_the_same(studio: Any) -> None:
    here, there = (trained(studio, device, device) for device in ("cpu", GPU))
    assert there.weights == here.weights
    for mine, theirs in zip(here.trained.rows, there.trained.rows, strict=True):
        for name, value in mine.items():
            if name in ("loss", "ce", "kd"):
                assert theirs[name] == pytest.approx(value, rel=2e-3), name
            elif name.startswith("dropped_"):
                assert theirs[name] == pytest.approx(value, abs=0.02), name


def test_bfloat16_learns(studio: Any) -> None:
    rows = trained(studio, "half", GPU, train={"precision": "bf16"}).trained.rows
    exact = trained(studio, "whole", GPU).trained.rows
    assert rows[-1]["ce"] < rows[0]["ce"]
    assert rows[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)


@pytest.mark.parametrize(("first", "then"), [(GPU, GPU), (GPU, "cpu"), ("cpu", GPU)])
def test_a_run_goes_on_on_either(studio: Any, first: str, then: str) -> None:
    class Stopped(BaseException):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    whole = trained(studio, "whole", first).trained.rows
    with pytest.raises(Stopped):
        trained(studio, "parts", first, on_epoch=stop)
    parts = trained(studio, "parts", then).trained.rows
    assert [row["epoch"] for row in parts] == [row["epoch"] for row in whole]
    for mine, theirs in zip(parts, whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-3)


def test_the_ranking(studio: Any) -> None:
    done = trained(studio, "base", "cpu", teachers=())
    model, _ = load_student(studio.work, studio.domain, done.folder.name)
    here = rank_targets(model, studio.domain, "test", device="cpu")
    there = rank_targets(model, studio.domain, "test", device=GPU)
    assert np.mean(here.rank == there.rank) > 0.95
    expected = ranking_metrics(here.rank)
    assert ranking_metrics(there.rank) == pytest.approx(expected, abs=0.02)


def test_teachers_are_tuned_and_score_the_same(studio: Any, tmp_path: Path) -> None:
    plan = load_plan(studio.work, studio.domain)
    exact = open_scores(studio.work, studio.domain, plan, "unisrec-0")
    # Encoded on a processor before, these would be taken as they are.
    shutil.rmtree(studio.work / "cache" / "vectors")
    scored = teacher_score(
        studio.work, studio.domain.name, "unisrec-0", settings(studio.config, GPU), scores=str(tmp_path)
    )
    assert scored.encoded > 0
    found = open_scores(studio.work, studio.domain, plan, "unisrec-0", scores=str(tmp_path))
    for batch_id in range(plan.n_batches):
        np.testing.assert_allclose(found.read(batch_id), exact.read(batch_id), atol=0.05)
    rows: list[dict[str, Any]] = []
    config = settings(studio.config, GPU)
    finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="there", on_epoch=rows.append)
    assert rows[-1]["ce"] < rows[0]["ce"]


def test_a_catalogue_in_blocks_is_the_catalogue_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 20_000)
    encoded, table = torch.randn(64, 8, device=GPU, requires_grad=True), torch.randn(20_000, 8, device=GPU)
    assert chunks.block_rows(len(table), table.device) < len(encoded)
    targets = torch.randint(1, 20_000, (64,), device=GPU)
    loss, _, _ = full_softmax_loss(encoded, table, targets)
    (gradient,) = torch.autograd.grad(loss, [encoded])
    expected = torch.autograd.grad(F.cross_entropy(encoded @ table.T, targets), [encoded])[0]
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("student", ["sasrec", "gru4rec"])
def test_requests_are_answered_and_counted_the_same(studio: Any, student: str) -> None:
    config = settings(studio.config, "cpu", epochs=1)
    config = config.model_copy(update={"student": {}})
    train_student(studio.work, studio.domain.name, student, config, (), run="served")
    flops, items = {}, {}
    for device in ("cpu", GPU):
        table = serving_cost(studio.work, studio.domain.name, ["served"], batch_sizes=(1,), repeats=1, device=device)
        flops[device] = table.rows[0].flops
        requests = [json.dumps({"user": raw}) for raw in studio.domain.user_ids[:20]]
        answers = recommend(studio.work, studio.domain.name, "served", requests, k=1, device=device)
        items[device] = [json.loads(answer)["items"] for answer in answers]
    assert flops[GPU] == flops["cpu"] > 0
    assert np.mean([here == there for here, there in zip(items["cpu"], items[GPU], strict=True)]) > 0.9


def test_a_recurrence_is_in_float32_under_autocast(studio: Any) -> None:
    torch.manual_seed(0)
    model = GRU4Rec(GRU4RecConfig(embedding_size=8, hidden_size=8), studio.domain.n_items).eval()
    batch = Batches(studio.domain, studio.domain.instances("test"))(np.arange(20))
    expected = model.encode(batch)
    states: list[torch.Tensor] = []
    model.to(GPU).gru_layers.register_forward_hook(lambda _, given, made: states.append(made[0]))
    with torch.autocast(GPU, torch.bfloat16):
        found = model.encode(batch.to(GPU))
    assert states[0].dtype == torch.float32
    torch.testing.assert_close(found.float().cpu(), expected, atol=0.02, rtol=0.02)


def test_tensors_of_a_gpu_are_exchanged(tmp_path: Path) -> None:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        # Of a world of two, as far as it knows: alone it would exchange nothing.
        one = Parallel(0, 2, GPU)
        for device in ("cpu", GPU):
            tensor = torch.arange(5.0, device=device)
            assert one.sum(tensor).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
            one.copy_first([tensor])
            assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    finally:
        distributed.destroy_process_group()
