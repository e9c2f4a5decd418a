"""Stage two refuses scores, students and inputs that do not belong together, naming both."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from ckd.config import RunConfig
from ckd.data.domain import columns
from ckd.errors import CkdError, ConfigError, DataError, StoreError
from ckd.pipelines.finetune_teacher import finetune_teacher, teacher_fingerprint
from ckd.pipelines.plan import load_plan, make_plan
from ckd.pipelines.train_student import TrainedStudent, load_student, scored_teachers, train_student


def train(studio: Any, teachers: tuple[str, ...] = (), config: RunConfig | None = None, **options: Any) -> Any:
    return train_student(studio.work, studio.domain.name, "sasrec", config or studio.config, teachers, **options)


def described(done: TrainedStudent) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.folder / "student.json").read_text())
    return found


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- refusals --------------------------------------------------------------------------------------------------------


def refinetune(studio: Any, run: str, seed: int) -> None:
    shutil.rmtree(studio.work / "teachers" / studio.domain.name / run)
    config = studio.config.model_copy(update={"seed": seed})
    finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run=run)


def test_a_teacher_that_changed_under_its_scores_is_refused(studio: Any) -> None:
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    old = teacher_fingerprint(folder)
    refinetune(studio, "unisrec-1", seed=50)
    with pytest.raises(
        StoreError,
        match=rf"unisrec-1/manifest\.json: made for teacher {old}, expected teacher {teacher_fingerprint(folder)}\.",
    ):
        train(studio, studio.teachers)
    assert not (studio.work / "students").exists()


def test_a_mismatch_that_is_allowed_is_stamped(studio: Any) -> None:
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    old = teacher_fingerprint(folder)
    refinetune(studio, "unisrec-1", seed=50)
    done = train(studio, studio.teachers, allow_mismatch=True)
    stamp = {"unisrec-1": f"made for teacher {old}, expected teacher {teacher_fingerprint(folder)}"}
    assert done.mismatches == stamp
    assert described(done)["identity"]["mismatches"] == stamp
    assert json.loads((done.folder / "best.json").read_text())["identity"]["mismatches"] == stamp
    assert train(studio, studio.teachers, allow_mismatch=True).mismatches == stamp
    # Without the flag, the finished run is no excuse.
    with pytest.raises(StoreError, match="made for teacher"):
        train(studio, studio.teachers)
    other = train(studio, studio.teachers[:1], allow_mismatch=True)
    assert other.mismatches == {}


def test_scores_of_another_plan_are_refused(studio: Any) -> None:
    other = make_plan(studio.work, studio.domain.name, studio.config.model_copy(update={"seed": 4})).plan
    with pytest.raises(
        StoreError,
        match=r"2 plans \([0-9a-f]{12}: difficulty .*, [0-9a-f]{12}: difficulty .* seed \d+\)\. Name one with --plan",
    ):
        train(studio, studio.teachers)
    with pytest.raises(StoreError, match=rf"{other.id}/unisrec-0/manifest\.json: no such file.*teacher-score"):
        train(studio, studio.teachers, plan_id=other.id)
    scores = studio.work / "scores" / studio.domain.name
    shutil.copytree(scores / studio.plan, scores / other.id)
    first = load_plan(studio.work, studio.domain, studio.plan)
    with pytest.raises(StoreError, match=rf"made for plan {first.fingerprint}, expected plan {other.fingerprint}"):
        train(studio, studio.teachers, plan_id=other.id)


def test_scores_of_another_domain_are_refused(studio: Any) -> None:
    name = next(p.name for p in (studio.work / "domains").iterdir() if p.name != studio.domain.name)
    config = studio.config
    plan = make_plan(studio.work, name, config).plan
    finetune_teacher(studio.work, name, "unisrec", config, run="unisrec-0")
    foreign = studio.work / "scores" / name / plan.id
    shutil.copytree(studio.work / "scores" / studio.domain.name / studio.plan, foreign)
    with pytest.raises(StoreError, match=rf"made for domain {studio.domain.fingerprint}, expected domain "):
        train_student(studio.work, name, "sasrec", config, ["unisrec-0"])


def test_a_renumbered_catalogue_is_refused(studio: Any) -> None:
    """The same items in another order: every number in the store would mean another item."""
    domain = studio.domain
    order = np.concatenate([[0], np.roll(np.arange(1, domain.n_items + 1), 1)])
    table = domain.item_table
    shuffled = table[np.argsort(order[1:])].with_columns(table[columns.ITEM])
    changed = replace(domain, items=order[domain.items].astype(np.int32), item_table=shuffled).save(domain.folder)
    raw = {raw: item for item, raw in domain.item_table.select(columns.ITEM, columns.RAW).iter_rows() for raw in [raw]}
    assert len(raw) == domain.n_items
    with pytest.raises(StoreError, match=f"fingerprint {domain.fingerprint}, {domain.name} has {changed.fingerprint}"):
        train(studio, studio.teachers)
    with pytest.raises(StoreError, match="run `ckd plan` again"):
        train(studio)


def test_a_flipped_bit_stops_training_at_its_batch(studio: Any) -> None:
    part = studio.work / "scores" / studio.domain.name / studio.plan / "unisrec-2" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"unisrec-2/part-00000\.parquet: .*repairs it"):
        train(studio, studio.teachers)


def test_what_is_missing_is_named_before_anything_is_written(studio: Any) -> None:
    before = everything(studio.work)
    name, config = studio.domain.name, studio.config

    def refused(kind: type[CkdError], message: str, student: str = "sasrec", *teachers: str, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            train_student(studio.work, options.pop("domain", name), student, options.pop("config", config), teachers)

    refused(DataError, "no prepared domain here", domain="absent")
    refused(ConfigError, r"unknown student 'sasrek'\. Did you mean 'sasrec'", "sasrek")
    refused(DataError, r"unisrec-7/result\.json: no such file\. Run `ckd finetune-teacher", "sasrec", "unisrec-7")
    keys = config.model_copy(update={"student": {"hiden_size": 1}})
    refused(ConfigError, r"student: unknown key 'hiden_size'\. Did you mean 'hidden_size'", config=keys)
    device = config.model_copy(update={"train": config.train.model_copy(update={"device": "bogus"})})
    refused(ConfigError, r"train\.device='bogus'", config=device)
    assert everything(studio.work) == before
    shutil.rmtree(studio.work / "scores" / name / studio.plan / "unisrec-2")
    before = everything(studio.work)
    refused(StoreError, r"unisrec-2/manifest\.json: no such file.*teacher-score", "sasrec", *studio.teachers)
    assert everything(studio.work) == before


# --- teachers and students by name -----------------------------------------------------------------------------------


def test_all_scored_teachers_are_found(studio: Any, tmp_path: Path) -> None:
    name = studio.domain.name
    assert scored_teachers(studio.work, name) == list(studio.teachers)
    (studio.work / "scores" / name / studio.plan / "unisrec-1" / "manifest.json").unlink()
    assert scored_teachers(studio.work, name, studio.plan) == ["unisrec-0", "unisrec-2"]
    with pytest.raises(StoreError, match=rf"no teacher has scored plan {studio.plan}\. Run `ckd teacher-score` first"):
        scored_teachers(studio.work, name, scores=str(tmp_path / "nowhere"))


def test_a_student_is_loaded_as_it_was_best(studio: Any) -> None:
    done = train(studio, studio.teachers)
    model, found = load_student(studio.work, studio.domain, done.folder.name)
    assert found == described(done)
    assert not model.training
    best = load_file(done.folder / "best.safetensors")
    assert all(torch.equal(best[name], value) for name, value in model.state_dict().items())


def test_students_that_cannot_be_loaded(studio: Any) -> None:
    class Stopped(BaseException):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(DataError, match=r"absent/student\.json: no such file\. Train it: `ckd train-student"):
        load_student(studio.work, studio.domain, "absent")
    with pytest.raises(Stopped):
        train(studio, run="begun", on_epoch=stop)
    with pytest.raises(DataError, match="this run is not finished"):
        load_student(studio.work, studio.domain, "begun")
    done = train(studio, run="done")
    changed = replace(studio.domain, user_ids=pl.Series([f"x{u}" for u in range(studio.domain.n_users)]))
    with pytest.raises(DataError, match=rf"trained on content {studio.domain.fingerprint}, .* now has "):
        load_student(studio.work, changed, "done")
    best = done.folder / "best.safetensors"
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(DataError, match=re.escape(str(best))):
        load_student(studio.work, studio.domain, "done")


def test_a_misspelled_student_is_told_the_nearest(studio: Any) -> None:
    train(studio, run="mine")
    with pytest.raises(DataError, match=r"mind/student\.json: no such file\. .* Did you mean 'mine'\?$"):
        load_student(studio.work, studio.domain, "mind")


def test_a_teacher_is_no_student(studio: Any) -> None:
    with pytest.raises(
        DataError, match=r"unisrec-1: a teacher, and this takes a student\. Train one with `ckd train-student`\.$"
    ):
        load_student(studio.work, studio.domain, "unisrec-1")
    for run in ("one", "other"):
        train(studio, run=run)
    with pytest.raises(DataError, match=r"Name one of one, other\.$"):
        load_student(studio.work, studio.domain, "unisrec-1")


def test_a_finished_student_whose_weights_were_taken_is_trained_again_when_asked(studio: Any) -> None:
    best = train(studio).folder / "best.safetensors"
    before = best.read_bytes()
    best.unlink()
    with pytest.raises(DataError, match=r"best\.safetensors: no such file, of a run that is finished\. Give --restart"):
        train(studio)
    assert not train(studio, restart=True).reused
    assert best.read_bytes() == before


def test_no_more_epochs_than_are_planned(studio: Any) -> None:
    values = {**studio.config.model_dump(by_alias=True, exclude_unset=True)}
    more = RunConfig.model_validate({**values, "train": {**values["train"], "epochs": 4}})
    with pytest.raises(ConfigError, match=rf"train\.epochs=4: plan {studio.plan} has 3\. Give no more, or plan more"):
        train(studio, config=more)
    assert not (studio.work / "students" / studio.domain.name / "sasrec").exists()


def test_an_empty_description_names_its_file(studio: Any) -> None:
    done = train(studio)
    for name in ("best.json", "last.json", "student.json"):
        path = done.folder / name
        before = path.read_text()
        path.write_text("{}")
        with pytest.raises(DataError, match=re.escape(str(path))):
            train(studio)
        path.write_text(before)
    assert train(studio).reused


def test_weights_are_told_by_teacher(studio: Any) -> None:
    first = train(studio, studio.teachers, run="mine")
    assert list(first.weights.values()) == described(first)["teacher_weights"]
    assert len(set(first.weights.values())) == 3
    again = train(studio, studio.teachers[::-1], run="mine")
    assert again.reused
    assert again.weights == first.weights
