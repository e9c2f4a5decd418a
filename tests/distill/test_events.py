"""TensorBoard's curves of a run: all of them, each step once, also after a kill; and nothing where nobody asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ckd.config import TrainConfig
from ckd.distill.trainer import Trainer
from ckd.errors import ConfigError
from ckd.pipelines.finetune_teacher import finetune_teacher
from ckd.pipelines.train_student import train_student

MakeTrainer = Callable[..., Trainer]

Curves = dict[str, list[tuple[int, float]]]


def curves(folder: Path) -> Curves:
    """By tag, steps and values, as TensorBoard shows them."""
    shown = EventAccumulator(str(folder / "events"), size_guidance={"scalars": 0})
    shown.Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_every_part_has_a_curve(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    trainer = make_trainer(
        tmp_path, teachers=3, tensorboard=True, validate_every=2, on_step=lambda *a: seen.append(a[3])
    )
    rows = trainer.fit().rows
    found = curves(tmp_path)
    dropped = {f"dropped/teacher-{k}" for k in range(3)}
    metrics = {f"valid/{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (5, 10, 20, 50)} | {"valid/mrr"}
    expected = {"train/loss", "train/ce", "train/kd", "curriculum/stage", *dropped}
    expected |= {"speed/instances_per_second", "speed/waiting_share"}
    assert found.keys() - metrics == expected
    assert {"valid/recall@10", "valid/ndcg@10"} <= found.keys() & metrics
    steps = [len(trainer.plan.schedule_of(epoch)[1]) for epoch in range(4)]
    ends = [sum(steps[: epoch + 1]) for epoch in range(4)]
    for tag in ("train/loss", "train/ce", "train/kd", *dropped):
        assert [step for step, _ in found[tag]] == list(range(1, ends[-1] + 1))
    assert found["curriculum/stage"] == list(zip(ends, (1, 2, 0, 0), strict=True))
    for name in ("instances_per_second", "waiting_share"):
        assert found[f"speed/{name}"] == [(e, pytest.approx(r[name])) for e, r in zip(ends, rows, strict=True)]
    measured = [
        (e, pytest.approx(row["valid_ndcg@10"])) for e, row in zip(ends, rows, strict=True) if "valid_ndcg@10" in row
    ]
    assert found["valid/ndcg@10"] == measured
    assert [e for e, _ in measured] == [ends[0], ends[2], ends[3]]
    # The first step's loss is the running mean after one step.
    assert found["train/loss"][0][1] == pytest.approx(seen[0]["loss"])
    assert any(value for tag in dropped for _, value in found[tag])


@pytest.mark.parametrize("checkpoint_steps", [2, None])
def test_a_resumed_run_shows_every_step_once(
    make_trainer: MakeTrainer, tmp_path: Path, checkpoint_steps: int | None
) -> None:
    options: dict[str, Any] = {"tensorboard": True, "checkpoint_steps": checkpoint_steps, "teachers": 1}

    def run(name: str, stop_after: int | None) -> None:
        left = [stop_after or -1]

        def stop(*_: Any) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        try:
            make_trainer(tmp_path / name, on_step=stop, **options).fit()
        except KeyboardInterrupt:
            assert stop_after

    run("whole", None)
    for count in (3, 9, None):
        run("stopped", count)
    whole, stopped = curves(tmp_path / "whole"), curves(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    for tag in whole:
        if tag.startswith("speed/"):
            assert [step for step, _ in whole[tag]] == [step for step, _ in stopped[tag]]
        else:
            assert whole[tag] == stopped[tag]
    before = sorted((tmp_path / "stopped" / "events").iterdir())
    run("stopped", None)  # is finished
    assert sorted((tmp_path / "stopped" / "events").iterdir()) == before


def test_no_file_without_being_asked(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    assert not (tmp_path / "events").exists()


def test_a_missing_package_is_named_before_anything_is_trained(
    studio: Any, make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = r"train\.tensorboard=True: .*not installed.*pip install 'ckd-mdsr\[tensorboard\]'"
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path / "run", tensorboard=True)
    train = studio.config.train.model_copy(update={"tensorboard": True})
    config = studio.config.model_copy(update={"train": train})
    with pytest.raises(ConfigError, match=message):
        train_student(studio.work, studio.domain.name, "sasrec", config, run="events")
    with pytest.raises(ConfigError, match=message):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="events")
    for kind in ("students", "teachers"):
        assert not (studio.work / kind / studio.domain.name / "events").exists()
    # Nobody who does not ask is told.
    make_trainer(tmp_path / "run", plan={"buckets": 1, "epochs": 1}).fit()


def test_what_is_watched_is_no_part_of_what_is_trained(studio: Any) -> None:
    name = studio.domain.name
    first = train_student(studio.work, name, "sasrec", studio.config)
    train = studio.config.train.model_copy(update={"tensorboard": True, "device": "auto"})
    again = train_student(studio.work, name, "sasrec", studio.config.model_copy(update={"train": train}))
    assert (first.reused, again.reused) == (False, True)
    identity = json.loads((first.folder / "student.json").read_text())["identity"]["train"]
    assert identity == TrainConfig.model_validate(studio.config.train.model_dump()).identity()
    assert set(TrainConfig.NO_IDENTITY) == {"device", "tensorboard"}
    # An average that is not kept goes without saying.
    assert TrainConfig.model_fields.keys() - identity.keys() == {*TrainConfig.NO_IDENTITY, "ema"}
    assert "checkpoint_steps" not in TrainConfig().identity("checkpoint_steps")
