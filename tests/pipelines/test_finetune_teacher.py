"""Fine-tuning a teacher: kept, gone on with, or refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures, load_features, save_features
from ckd.errors import ConfigError, DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.pipelines import finetune_teacher as pipeline
from ckd.pipelines.finetune_teacher import finetune_teacher, load_result, load_teacher, teacher_fingerprint
from ckd.pipelines.train_student import train_student
from ckd.teachers.protocol import FinetuneResult
from ckd.teachers.unisrec import UniSRec


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def with_train(config: RunConfig, **change: Any) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=change)})


def test_the_best_epoch_is_kept_with_its_metrics(studio: Any) -> None:
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    teacher, fingerprint, result = load_teacher(studio.work, studio.domain, "unisrec-1")
    assert fingerprint == teacher_fingerprint(folder)
    for split in ("valid", "test"):
        assert result["metrics"][split] == ranking_metrics(rank_targets(teacher, studio.domain, split).rank)
    rows = json.loads((folder / "last.json").read_text())["rows"]
    assert len(rows) == 3
    assert result["metrics"]["valid"]["ndcg@10"] == max(row["valid_ndcg@10"] for row in rows)
    assert {row["stage"] for row in rows} == {0}
    assert result["identity"]["features"] == {"text": load_features(studio.domain, "text").fingerprint}
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_finished_teacher_is_not_trained_again(studio: Any) -> None:
    config = studio.config.model_copy(update={"seed": 1})
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    before = contents(folder)
    found = finetune_teacher(
        studio.work, studio.domain.name, "unisrec", config, run="unisrec-1", on_epoch=lambda row: pytest.fail("trained")
    )
    assert found.reused
    assert (found.folder, found.fingerprint) == (folder, teacher_fingerprint(folder))
    assert found.metrics == load_result(studio.work, studio.domain, "unisrec-1")["metrics"]
    assert contents(folder) == before


def test_the_same_seed_gives_the_same_teacher(studio: Any) -> None:
    config = studio.config.model_copy(update={"seed": 1})
    again = finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="again")
    assert not again.reused
    folder = studio.work / "teachers" / studio.domain.name
    assert again.fingerprint == teacher_fingerprint(folder / "unisrec-1")
    assert again.fingerprint != teacher_fingerprint(folder / "unisrec-2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 9}, "seed = 1, this one has 9"),
        ({"train": {"lr": 0.5}}, r"train\.lr = 0\.001, this one has 0\.5"),
        ({"teacher": {"n_experts": 3}}, r"config\.n_experts = 2, this one has 3"),
    ],
)
def test_another_identity_is_refused(studio: Any, change: dict[str, Any], message: str) -> None:
    values = studio.config.model_dump(by_alias=True)
    values = {k: {**v, **change[k]} if isinstance(change.get(k), dict) else v for k, v in values.items()}
    config = RunConfig.model_validate({**values, "seed": change.get("seed", 1)})
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    before = contents(folder)
    with pytest.raises(DataError, match=rf"{re.escape(str(folder))}: .*{message}\. Give another --run"):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="unisrec-1")
    assert contents(folder) == before


def test_other_item_features_make_another_teacher(studio: Any) -> None:
    old = load_features(studio.domain, "text")
    save_features(studio.domain.folder, ItemFeatures("text", np.asarray(old.vectors) * 2, old.present))
    config = studio.config.model_copy(update={"seed": 1})
    with pytest.raises(DataError, match=rf"features\.text = \"{old.fingerprint}\", this one has"):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="unisrec-1")
    with pytest.raises(DataError, match=r"fine-tuned with feature 'text' of content"):
        load_teacher(studio.work, studio.domain, "unisrec-1")


def test_other_pretrained_weights_make_another_teacher(studio: Any) -> None:
    start = studio.work / "pretrained" / "unisrec"

    def pretrain(seed: int) -> None:
        torch.manual_seed(seed)
        config = UniSRec.Config(**studio.config.teacher)
        start.mkdir(parents=True, exist_ok=True)
        UniSRec.create(config, studio.domain).save_pretrained(start, {"made": "at random"})

    config = studio.config.model_copy(update={"teacher": {**studio.config.teacher, "start": str(start)}})
    pretrain(0)
    first = finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="started")
    assert finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="started").reused
    kept = load_teacher(studio.work, studio.domain, "started")[0].state_dict()["position_embedding.weight"]
    assert torch.equal(kept, load_file(start / "model.safetensors")["position_embedding.weight"])
    pretrain(1)
    with pytest.raises(DataError, match=r"run with start = "):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="started")
    assert not first.reused


class Stopped(BaseException):
    """What a kill looks like from inside, without the process."""


def test_how_the_start_is_spelled_makes_no_other_run(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = studio.work / "pretrained" / "unisrec"
    start.mkdir(parents=True)
    UniSRec.create(UniSRec.Config(**studio.config.teacher), studio.domain).save_pretrained(start, {"made": "at random"})
    monkeypatch.chdir(studio.work)
    absolute, relative = (
        studio.config.model_copy(update={"teacher": {**studio.config.teacher, "start": path}})
        for path in (str(start), "pretrained/unisrec")
    )

    def tune(config: RunConfig, run: str, **more: Any) -> Any:
        return finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run=run, **more)

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    whole = tune(absolute, "whole")
    assert tune(relative, "whole").reused
    with pytest.raises(Stopped):
        tune(relative, "cut", on_epoch=stop)
    epochs: list[Any] = []
    cut = tune(absolute, "cut", on_epoch=epochs.append)
    assert len(epochs) == 2
    assert cut.fingerprint == whole.fingerprint
    UniSRec.create(UniSRec.Config(**studio.config.teacher), studio.domain).save_pretrained(start, {"made": "anew"})
    with pytest.raises(DataError, match=r"run with start = "):
        tune(relative, "whole")


def test_how_vector_files_are_spelled_makes_no_other_run(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    for name, ids in (("user", studio.domain.user_ids), ("item", studio.domain.item_table["raw_id"])):
        table = pl.DataFrame({name: ids, "vector": draw.normal(size=(len(ids), 4)).tolist()})
        table.write_parquet(studio.work / f"{name}s.parquet")
    monkeypatch.chdir(studio.work)
    for folder in (studio.work, Path()):
        paths = {f"{name}_vectors": str(folder / f"{name}s.parquet") for name in ("user", "item")}
        config = studio.config.model_copy(update={"teacher": paths})
        found = finetune_teacher(studio.work, studio.domain.name, "vectors", config)
    assert found.reused


@pytest.mark.parametrize("where", ["epoch", "save", "result"])
def test_an_unfinished_run_goes_on(studio: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    config = studio.config.model_copy(update={"seed": 1})
    with monkeypatch.context() as patch:
        if where == "save":
            patch.setattr(UniSRec, "save", stop)
        elif where == "result":
            patch.setattr(pipeline, "rank_targets", stop)
        with pytest.raises(Stopped):
            finetune_teacher(
                studio.work,
                studio.domain.name,
                "unisrec",
                config,
                run="broken",
                on_epoch=stop if where == "epoch" else None,
            )
    with pytest.raises(DataError, match=r"result\.json: no such file\. Run `ckd finetune-teacher"):
        load_teacher(studio.work, studio.domain, "broken")
    epochs: list[dict[str, Any]] = []
    done = finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="broken", on_epoch=epochs.append)
    assert len(epochs) == (2 if where == "epoch" else 0)
    folder = studio.work / "teachers" / studio.domain.name
    assert (folder / "broken" / "model.safetensors").read_bytes() == (
        folder / "unisrec-1" / "model.safetensors"
    ).read_bytes()
    assert done.metrics == load_result(studio.work, studio.domain, "unisrec-1")["metrics"]


def test_an_unfinished_run_of_another_kind_is_refused(studio: Any) -> None:
    config = studio.config.model_copy(update={"seed": 1})

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="broken", on_epoch=stop)
    with pytest.raises(DataError, match=r"last\.safetensors: .*train\.lr = 0\.001, this one has 0\.5\."):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", with_train(config, lr=0.5), run="broken")


def test_a_teacher_of_other_content_is_refused(studio: Any) -> None:
    domain = studio.domain
    other = replace(domain, history_cap=7).save(domain.folder)
    with pytest.raises(DataError, match=f"fine-tuned on content {domain.fingerprint}, the domain is now"):
        load_teacher(studio.work, other, "unisrec-1")


def test_names_and_keys_are_checked_before_anything_is_written(studio: Any) -> None:
    before = sorted((studio.work / "teachers").rglob("*"))
    run = {"work": studio.work, "domain_name": studio.domain.name, "config": studio.config}
    with pytest.raises(ConfigError, match="Did you mean 'unisrec'"):
        finetune_teacher(teacher_name="unisrek", **run)
    bad = studio.config.model_copy(update={"teacher": {"hidden_sise": 8}})
    with pytest.raises(ConfigError, match=r"teacher: unknown key 'hidden_sise'\. Did you mean 'hidden_size'"):
        finetune_teacher(teacher_name="unisrec", **{**run, "config": bad})
    with pytest.raises(DataError, match="no prepared domain here"):
        finetune_teacher(teacher_name="unisrec", **{**run, "domain_name": "absent"})
    for name in ("../escaped", "a/b", ".hidden", "a b", "/tmp/x"):
        with pytest.raises(ConfigError, match=f"run {name!r}: use letters"):
            finetune_teacher(teacher_name="unisrec", run=name, **run)
    assert sorted((studio.work / "teachers").rglob("*")) == before


class _Config(BaseModel):
    pass


class Own:
    """A teacher that brings its own fine-tuning."""

    Config: ClassVar[type[Any]] = _Config
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"lr": 0.25}
    similarity = "dot"
    temperature = 1.0
    told: ClassVar[list[Any]] = []

    @classmethod
    def create(cls, config: Any, domain: Domain) -> Own:
        return cls()

    def finetune(self, domain: Domain, train: Any, seed: int, folder: Path, progress: Any) -> FinetuneResult:
        self.told.append((domain.name, train.lr, seed, folder.name))
        progress(1, 2, "step", "")
        return FinetuneResult(0.5, 1, [])

    def save(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "teacher.json").write_text("{}")

    def encode_instances(self, batch: Any) -> torch.Tensor:
        return torch.ones(len(batch), 2)

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        return torch.stack([items.float(), items.float() ** 2], dim=1)


class Registry:
    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def get(self, name: str) -> Any:
        return self.plugin


def test_a_teacher_may_bring_its_own_finetuning(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TEACHERS", Registry(Own))
    calls: list[Any] = []
    config = studio.config.model_copy(update={"train": studio.config.train.__class__(device="cpu")})
    done = finetune_teacher(studio.work, studio.domain.name, "own", config, progress=lambda *a, **k: calls.append(a))
    assert Own.told == [(studio.domain.name, 0.25, 3, "own")]
    assert calls == [(1, 2, "step", "")]
    assert set(done.metrics) == {"valid", "test"}
    assert finetune_teacher(studio.work, studio.domain.name, "own", config).reused


class Untrainable:
    """Neither a Recommender nor able to train itself."""

    Config: ClassVar[type[Any]] = _Config

    @classmethod
    def create(cls, config: Any, domain: Domain) -> Untrainable:
        return cls()


def test_a_class_that_cannot_be_trained_is_refused(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TEACHERS", Registry(Untrainable))
    plain = studio.config.model_copy(update={"teacher": {}})
    with pytest.raises(ConfigError, match=r"teacher 'own' cannot be fine-tuned: its class is no Recommender"):
        finetune_teacher(studio.work, studio.domain.name, "own", plain)
    assert not (studio.work / "teachers" / studio.domain.name / "own").exists()


def test_a_finished_teacher_whose_files_were_taken_is_made_again_when_asked(studio: Any) -> None:
    config = studio.config.model_copy(update={"seed": 1})
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    fingerprint = teacher_fingerprint(folder)
    for name in ("model.safetensors", "teacher.json"):
        (folder / name).unlink()
        with pytest.raises(DataError, match=rf"unisrec-1/{re.escape(name)}: no such file, of a run that .*--restart"):
            finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="unisrec-1")
        again = finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run="unisrec-1", restart=True)
        assert (again.reused, again.fingerprint) == (False, fingerprint)


@pytest.mark.parametrize("keep", [None, 1])
def test_another_teacher_takes_the_place_of_one_to_be_discarded(studio: Any, keep: int | None) -> None:
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    (folder / "left over").write_text("from before")
    config = studio.config.model_copy(update={"seed": 7})
    made = finetune_teacher(
        studio.work, studio.domain.name, "unisrec", config, run="unisrec-1", restart=True, keep_rankings=keep
    )
    assert load_result(studio.work, studio.domain, "unisrec-1")["identity"]["seed"] == 7
    assert bool(made.rankings) == bool(keep)
    assert not (folder / "left over").exists()
    assert not list(folder.glob(".*"))


def test_a_students_name_is_no_teachers(studio: Any) -> None:
    train_student(studio.work, studio.domain.name, "sasrec", studio.config, run="mine")
    with pytest.raises(ConfigError, match=r"--run mine: .*students/.*/mine is a student of that name"):
        finetune_teacher(studio.work, studio.domain.name, "unisrec", studio.config, run="mine")
    assert not (studio.work / "teachers" / studio.domain.name / "mine").exists()
    with pytest.raises(ConfigError, match=r"--run unisrec-0: .*is a teacher of that name"):
        train_student(studio.work, studio.domain.name, "sasrec", studio.config, run="unisrec-0")
    assert not (studio.work / "students" / studio.domain.name / "unisrec-0").exists()


def test_a_misspelled_teacher_is_told_the_nearest(studio: Any) -> None:
    with pytest.raises(DataError, match=r"unisrec-11/result\.json: no such file\. .* Did you mean 'unisrec-1'\?$"):
        load_result(studio.work, studio.domain, "unisrec-11")
