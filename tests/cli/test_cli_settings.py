"""What a command says of settings that it does not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckd.commands.options import settings_of

Ckd = Callable[..., Any]


def test_settings_by_method_are_said_to_change_nothing_elsewhere(ckd: Ckd, studio: Any, config: Path) -> None:
    words = ["plan", "--domain", studio.domain.name, "--work", studio.work, "--config", config]
    assert ckd(*words).err == ""
    found = ckd(*words, "-o", "methods={fm: {train.lr: 0.1}}", "-o", "base.hidden_size=8", "--json")
    assert found.err == "ckd: methods and base: settings of `ckd reproduce`, which change nothing here.\n"
    assert found.json["plan"] == studio.plan


def test_settings_that_the_plan_gives_students_are_said_to_change_nothing(ckd: Ckd, studio: Any, config: Path) -> None:
    words = ["train-student", "--domain", studio.domain.name, "--no-distill", "--work", studio.work, "--config", config]
    # The file has a batch size for teachers, which is said to nobody.
    assert "changes nothing" not in ckd(*words, "--run", "plain").err
    found = ckd(*words, "--run", "told", "-o", "train.batch_size=8", "-o", "train.layout=user", "--json")
    assert found.err == "".join(
        f"ckd: train.{name}: a student's batches are its plan's (plan.{name}); it changes nothing here.\n"
        for name in ("batch_size", "layout")
    )
    planned = ckd(*words, "--run", "planned", "-o", "plan.epochs=9", "--json")
    assert planned.err == "ckd: plan.epochs: `ckd plan` has made the plan; it changes nothing here.\n"
    told = ckd(*words, "--run", "whole", "-o", "train={layout: user, epochs: 1}", "-o", "distill.lambda=3", "--json")
    assert told.err == (
        "ckd: train.layout: a student's batches are its plan's (plan.layout); it changes nothing here.\n"
        "ckd: distill.lambda: nothing is distilled with --no-distill; it changes nothing here.\n"
    )


NOWHERE = ["--domain", "nowhere"]


@pytest.mark.parametrize(
    ("words", "reads"),
    [
        (["prepare", "nothing"], "prepare"),
        (["encode-items", *NOWHERE], "features"),
        (["pretrain-teacher", "--teacher", "unisrec", "--domains", "nowhere"], "seed, teacher, train"),
        (["finetune-teacher", "--teacher", "unisrec", *NOWHERE], "seed, teacher, train"),
        (["teacher", "import", "nothing", "--teacher", "unisrec"], "teacher"),
        (["plan", *NOWHERE], "seed, plan"),
        (["teacher-score", "--teacher", "nobody", *NOWHERE], "score, distill, train"),
        (["train-student", "--no-distill", *NOWHERE], "seed, distill, train, student"),
        (["train-baseline", "--baseline", "hetcomp", *NOWHERE], "seed, baseline, student, train"),
        (["tune", "--no-distill", *NOWHERE], "seed, plan, distill, train, student, base"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_of_other_commands_are_said_to_change_nothing(
    ckd: Ckd, tmp_path: Path, words: list[str], reads: str
) -> None:
    every = {"prepare": "min_length=3", "features": "modality=text", "baseline": "epochs=3", "student": "hidden_size=8"}
    others = {name: rest for name, rest in every.items() if name not in reads.split(", ")}
    found = ckd(*words, "--work", tmp_path, *(f"-o{name}.{rest}" for name, rest in others.items()))
    assert found.code == 1
    *told, error = found.err.splitlines()
    keys = [f"{name}.{rest.partition('=')[0]}" for name, rest in others.items()]
    assert told == [f"ckd: {key}: of settings this command reads {reads}; it changes nothing here." for key in keys]
    assert "nothing" in error or "nowhere" in error


def test_a_teacher_that_scores_takes_of_train_the_device(ckd: Ckd, studio: Any, config: Path) -> None:
    words = ["teacher-score", "--domain", studio.domain.name, "--teacher", "unisrec-0", "--work", studio.work]
    found = ckd(*words, "--config", config, "--json", "-o", "train.lr=1", "-o", "train.device=cpu", "-o", "plan.pool=2")
    assert found.code == 0
    assert found.err == (
        "ckd: train.lr: the teacher is trained, and takes the device alone; it changes nothing here.\n"
        "ckd: plan.pool: `ckd plan` has made the plan; it changes nothing here.\n"
    )


def test_of_processes_started_together_the_first_alone_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        settings_of(None, ["plan.epochs=9", "methods={fm: {train.lr: 0.1}}"], reads=("train",))
        return capsys.readouterr().err

    alone = said()
    assert alone.count("\n") == 2
    monkeypatch.setenv("RANK", "0")
    assert said() == alone
    monkeypatch.setenv("RANK", "1")
    assert said() == ""
