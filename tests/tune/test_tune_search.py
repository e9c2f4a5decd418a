"""Searches over the example at its smallest: what they keep, what they never read, and how they go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from ckd.config import RunConfig, load_config
from ckd.data.domain import Domain
from ckd.distill import trainer as trainer_module
from ckd.distill.trainer import Trainer, TrainingDiverged
from ckd.errors import ConfigError, DataError, StoreError
from ckd.pipelines import tune_result
from ckd.pipelines.train_student import train_student
from ckd.pipelines.tune import Request, tune
from ckd.pipelines.tune_result import Search

VARY = ("train.lr=[0.001,0.01,0.03]", "student.hidden_dropout={low: 0.1, high: 0.5}")


def searches(studio: Any, config: RunConfig | None = None, **wanted: Any) -> list[Search]:
    asked: dict[str, Any] = {"student": "sasrec", "kinds": ("base",), "trials": 2, "vary": VARY, **wanted}
    return tune(studio.work, studio.domain.name, config or studio.config, Request(**asked)).searches


def without_seconds(search: Search) -> list[Any]:
    return [replace(trial, seconds=0.0) for trial in search.trials]


def test_both_get_as_many_trials_and_keep_them_all(studio: Any) -> None:
    told: list[tuple[str, int]] = []
    vary = (*VARY, "distill.lambda=[1, 10]", "train.ema=[null]")
    request = Request("sasrec", ("base", "distilled"), 2, vary=vary, teachers=studio.teachers)
    found = tune(
        studio.work,
        studio.domain.name,
        studio.config,
        request,
        on_trial=lambda search, trial: told.append((search.kind, trial.number)),
    )
    base, distilled = found.searches
    assert told == [(kind, number) for kind in ("base", "distilled") for number in range(2)]
    for search, own in ((base, set()), (distilled, {"distill.lambda"})):
        table = pl.read_parquet(search.folder / "trials.parquet")
        assert table["number"].to_list() == [0, 1]
        assert set(table.columns) == own | {
            *("number", "state", "valid_ndcg@10", "valid_recall@10", "best_epoch", "epochs", "seconds", "values"),
            *("train.lr", "student.hidden_dropout", "train.ema"),
        }
        assert search.best is not None
        assert table["valid_ndcg@10"].max() == search.best.metric
        assert search.budget.trials == 2
        assert search.budget.epochs == table["epochs"].sum() > 0
        assert search.budget.seconds == pytest.approx(table["seconds"].sum())
        described = json.loads((search.folder / "search.json").read_text())
        assert described["budget"]["trials"] == 2
        assert described["best"]["values"] == search.best.values
    assert not list((studio.work / "students" / studio.domain.name).glob("tune-*"))
    assert found.methods is not None
    written = load_config(found.methods)
    assert written.model_copy(update={"methods": {}}) == studio.config
    methods = written.methods
    for name, search in (("SASRec", base), ("sasrec", distilled)):
        best = json.loads((search.folder / "search.json").read_text())["best"]["run"]
        assert methods[name].pop("train.lr") == best["train"]["lr"]
        # Said although it is the default: what the distilled student takes goes for the base model else.
        assert methods[name].pop("train.ema", "absent") is None
        assert methods[name].pop("student.hidden_dropout") == best["config"]["hidden_dropout"]
    lambdas = (studio.config.distill.weight, distilled.best.values.get("distill.lambda"))
    assert methods["sasrec"].pop("distill.lambda") in lambdas
    assert methods == {"SASRec": {}, "sasrec": {}}


def test_the_best_values_are_a_configuration_that_gives_the_best_metric(studio: Any, tmp_path: Path) -> None:
    vary = ("train.lr=[0.03, 0.01]", "distill.lambda=[1, 10]")
    (search,) = searches(
        studio, kinds=("distilled",), teachers=studio.teachers[:1], trials=2, sampler="grid", vary=vary
    )
    assert search.best is not None
    assert search.best.values
    path = tmp_path / "best.yaml"
    path.write_text(search.settings)
    loaded = load_config(path)
    assert yaml.safe_load(search.settings)["train"] == {"lr": loaded.train.lr}
    plain = studio.config.model_dump(by_alias=True, exclude_unset=True)
    own = yaml.safe_load(search.settings)
    config = RunConfig.model_validate({**plain, **{k: {**plain.get(k, {}), **v} for k, v in own.items()}})
    trained = train_student(studio.work, studio.domain.name, "sasrec", config, teachers=studio.teachers[:1])
    assert trained.trained.metrics["ndcg@10"] == search.best.metric
    identity = json.loads((trained.folder / "student.json").read_text())["identity"]
    described = json.loads((search.folder / "search.json").read_text())["best"]["run"]
    assert described == {key: identity[key] for key in ("student", "config", "train", "distill")}


def test_a_search_never_asks_for_the_test_part(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    real = Domain.instances

    def instances(self: Domain, split: Any) -> Any:
        asked.add(split)
        assert split != "test", "the test part was read"
        return real(self, split)

    monkeypatch.setattr(Domain, "instances", instances)
    splits: set[str] = set()
    rank = trainer_module.rank_targets
    monkeypatch.setattr(
        trainer_module, "rank_targets", lambda m, d, split, **k: splits.add(split) or rank(m, d, split, **k)
    )
    searches(
        studio, kinds=("base", "distilled"), trials=1, vary=(*VARY, "distill.lambda=[1]"), teachers=studio.teachers[:1]
    )
    assert asked == {"train", "valid"}
    assert splits == {"valid"}


def test_other_test_items_change_nothing(studio: Any) -> None:
    (before,) = searches(studio, trials=1)
    domain = studio.domain
    last = domain.indptr[1:] - 1
    items = domain.items.copy()
    items[last] = np.roll(items[last], 1)
    assert (items != domain.items).any()
    other = replace(domain, items=items, name="other")
    other.save(studio.work / "domains" / "other")
    other = Domain.load(studio.work / "domains" / "other")
    assert other.fingerprint != domain.fingerprint
    (after,) = searches(replace(studio, domain=other), trials=1)
    assert without_seconds(after) == without_seconds(before)


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = searches(studio, name="whole")
    real_step, steps = Trainer._step, 0

    def step(self: Trainer, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps % 14 == 0:
            raise KeyboardInterrupt
        return real_step(self, *args)

    monkeypatch.setattr(Trainer, "_step", step)
    kills = 0
    while True:
        config = studio.config.model_copy(
            update={"train": studio.config.train.model_copy(update={"checkpoint_steps": 1})}
        )
        try:
            (broken,) = searches(studio, config, name="broken")
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 1
    assert without_seconds(broken) == without_seconds(whole)


@pytest.mark.parametrize("place", ["save_trials", "write_json"])
def test_killed_between_a_trial_and_its_record(studio: Any, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (whole,) = searches(studio, name="whole")
    real, calls = getattr(tune_result, place), 0

    def die(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(tune_result, place, die)
    with pytest.raises(KeyboardInterrupt):
        searches(studio, name="broken")
    (broken,) = searches(studio, name="broken")
    assert without_seconds(broken) == without_seconds(whole)
    assert not list((studio.work / "students" / studio.domain.name).glob("tune-*"))


def test_more_trials_later_and_none_twice(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = searches(studio, trials=1)
    (more,) = searches(studio, trials=2)
    assert more.trials[:1] == first.trials
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("a trial was trained again"))
    (again,) = searches(studio, trials=2)
    assert again == more
    (fewer,) = searches(studio, trials=1)
    assert fewer == more


def test_a_trial_that_diverges_is_kept_and_not_chosen(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trainer._step

    def step(self: Trainer, *args: Any) -> Any:
        if self.config.lr > 0.02:
            raise TrainingDiverged("lost")
        return real(self, *args)

    monkeypatch.setattr(Trainer, "_step", step)
    (search,) = searches(studio, trials=3, sampler="grid", vary=("train.lr=[0.001,0.01,0.03]",))
    states = {trial.values["train.lr"]: trial.state for trial in search.trials}
    assert states == {0.001: "complete", 0.01: "complete", 0.03: "diverged"}
    assert search.best is not None
    assert search.best.state == "complete"
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("a trial was trained again"))
    (again,) = searches(studio, trials=3, sampler="grid", vary=("train.lr=[0.001,0.01,0.03]",))
    assert [trial.number for trial in again.trials] == [0, 1, 2]
    monkeypatch.setattr(Trainer, "_step", step)
    (lost,) = searches(studio, trials=1, name="lost", sampler="grid", vary=("train.lr=[0.03]",))
    assert (lost.best, yaml.safe_load(lost.settings)) == (None, None)


def test_the_base_starts_from_its_own_settings_and_no_curriculum(studio: Any) -> None:
    student = {**studio.config.student, "hidden_dropout": 0.2}
    config = studio.config.model_copy(update={"student": student, "base": {"hidden_dropout": 0.45}})
    (search,) = searches(studio, config, trials=1)
    described = json.loads((search.folder / "search.json").read_text())
    assert described["best"]["run"]["config"]["hidden_dropout"] == 0.45
    plans = [json.loads(p.read_text()) for p in (studio.work / "plans" / studio.domain.name).glob("*/plan.json")]
    assert {p["config"]["pool"] for p in plans if p["fingerprint"] == described["identity"]["plan"]} == {"fresh"}


def test_refusals(studio: Any) -> None:
    searches(studio, name="mine", trials=1)
    with pytest.raises(DataError, match=r"search\.json: belongs to a run with sampler = .*Give another --name"):
        searches(studio, name="mine", trials=1, sampler="grid", vary=("train.lr=[0.1]",))
    students = studio.work / "students" / studio.domain.name
    for left in ("tune-mine-007", "tune-mine-2024-003"):
        (students / left).mkdir()
    (anew,) = searches(studio, name="mine", trials=1, sampler="grid", vary=("train.lr=[0.1]",), restart=True)
    # The other is a trial of a search called mine-2024.
    assert [path.name for path in students.glob("tune-*")] == ["tune-mine-2024-003"]
    (students / "tune-mine-2024-003").rmdir()
    assert anew.trials[0].values == {"train.lr": 0.1}
    for wanted, message in (
        ({"sampler": "best"}, "unknown sampler 'best'"),
        ({"student": "sasrek"}, "Did you mean 'sasrec'"),
        ({"vary": ("student.hiden_dropout=[0.1]",)}, "unknown key 'hiden_dropout'"),
        ({"vary": ("student.hidden_dropout={low: 0.5, high: 2}",)}, "hidden_dropout=2.0"),
        ({"vary": ("distill.lambda=[1]",), "kinds": ("base", "distilled")}, "nothing to search"),
        ({"name": "../x"}, "search '../x'"),
        ({"space": studio.work / "absent.yaml"}, "no such file"),
    ):
        # Nor is a plan left that nobody has asked for.
        elsewhere = studio.config.model_copy(update={"seed": 12345})
        plans = studio.work / "plans" / studio.domain.name
        before = list(plans.iterdir())
        with pytest.raises(ConfigError) as caught:
            searches(studio, elsewhere, **wanted)
        assert message in str(caught.value)
        assert list(plans.iterdir()) == before
    # What cannot be trained is refused before anything is, and before a former search is discarded.
    kept = (studio.work / "tune" / studio.domain.name / "mine" / "trials.parquet").read_bytes()
    absent = studio.config.model_copy(update={"train": studio.config.train.model_copy(update={"device": "cuda:99"})})
    for config, vary, message in (
        (absent, ("train.lr=[0.1]",), "train.device='cuda:99'"),
        (studio.config, ("train.epochs=[1, 500]",), r"train.epochs=500: plan \w+ has"),
    ):
        with pytest.raises(ConfigError, match=message):
            searches(studio, config, name="mine", trials=2, vary=vary, restart=True)
        assert (studio.work / "tune" / studio.domain.name / "mine" / "trials.parquet").read_bytes() == kept
    seeded = studio.config.model_copy(update={"seed": 99})
    with pytest.raises(StoreError, match="no teacher has scored plan"):
        searches(studio, seeded, kinds=("distilled",), trials=1)
    (studio.work / "tune" / studio.domain.name / "mine" / "trials.parquet").write_bytes(b"lost")
    with pytest.raises(DataError, match=r"trials\.parquet: damaged"):
        searches(studio, name="mine", trials=1, sampler="grid", vary=("train.lr=[0.1]",))
