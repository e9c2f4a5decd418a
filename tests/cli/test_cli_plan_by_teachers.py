"""`ckd plan` with a curriculum sorted by what teachers have scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.data.domain import Domain
from ckd.distill.plan import Plan
from ckd.pipelines.teacher_difficulty import teacher_difficulty

Ckd = Callable[..., Any]


@pytest.mark.parametrize("measure", ["teacher_loss", "teacher_disagreement"])
def test_a_plan_by_teachers_from_the_command_to_the_student(
    ckd: Ckd, studio: Any, config: Path, tmp_path: Path, measure: str
) -> None:
    name = studio.domain.name
    common = ["--domain", name, "--work", studio.work, "--config", config]
    words = ["plan", *common, "-o", f"plan.difficulty={measure}", "--scored-plan", studio.plan]
    shown = ckd(*words, "--show", "--figure", tmp_path / "plan.svg", "--json")
    assert shown.code == 0, shown.err
    assert (tmp_path / "plan.svg").exists()
    stages = shown.json["stages"]
    assert [stage["stage"] for stage in stages] == ["1", "2", "full"]
    easy, all_of_them = stages[0]["difficulty"], stages[-1]["difficulty"]
    assert 0 <= easy < all_of_them

    # What the table says is what the stores say: of users, the mean over their instances.
    known = teacher_difficulty(studio.work, name, studio.teachers, studio.plan)
    values = known.loss if measure == "teacher_loss" else known.disagreement
    users = studio.domain.instances("train").users
    means = np.array([values[users == user].mean() for user in np.unique(users)])
    assert all_of_them == pytest.approx(means.mean())
    assert easy == pytest.approx(np.sort(means)[: -(-len(means) // 2)].mean())

    folder = Path(shown.json["folder"])
    assert json.loads((folder / "plan.json").read_text())["scores"] == known.source
    again = ckd(*words, "--teachers", ",".join(reversed(studio.teachers)), "--json").json
    assert (again["plan"], again["reused"]) == (shown.json["plan"], True)
    two = ckd(*words, "--teachers", "unisrec-0,unisrec-1", "--json").json
    assert two["plan"] != shown.json["plan"]
    assert "Curriculum" in ckd(*words, "--show").out

    trained = ckd("train-student", *common, "--plan", shown.json["plan"], "--no-distill", "--json")
    assert trained.code == 0, trained.err


def test_a_preview_by_teachers_writes_nothing(
    ckd: Ckd, everything: Callable[[Path], Any], studio: Any, config: Path
) -> None:
    before = everything(studio.work)
    words = ["plan", "--domain", studio.domain.name, "--work", studio.work, "--config", config, "--dry-run", "--json"]
    words += ["-o", "plan.difficulty=teacher_loss", "--scored-plan", studio.plan]
    assert ckd(*words).json["batches"] > 0
    assert everything(studio.work) == before


def test_scores_in_another_place(ckd: Ckd, studio: Any, config: Path, tmp_path: Path) -> None:
    name = studio.domain.name
    common = ["--domain", name, "--work", studio.work, "--config", config]
    elsewhere = tmp_path / "elsewhere"
    ckd("teacher-score", *common, "--teacher", "unisrec-1", "--scores", elsewhere, "--codec", "u8")
    words = ["plan", *common, "-o", "plan.difficulty=teacher_loss", "--scored-plan", studio.plan]
    found = ckd(*words, "--scores", elsewhere, "--json")
    assert found.code == 0, found.err
    plan = Plan.load(Path(found.json["folder"]))
    # The codec is part of what the plan is bound to.
    assert plan.fingerprint != ckd(*words, "--teachers", "unisrec-1", "--json").json["fingerprint"]
    plan.require_domain(Domain.load(studio.work / "domains" / name))
