"""Spaces, samplers and the trials' file."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import RunConfig
from ckd.errors import ConfigError, DataError
from ckd.students import STUDENTS
from ckd.tune.samplers import SAMPLERS, STARTUP, check_sampler
from ckd.tune.space import Choice, Range, default_space, make_space, read_space
from ckd.tune.trials import Budget, Trial, best_of, load_trials, save_trials

SPACE = {
    "student.hidden_dropout, student.attention_dropout": {"low": 0.1, "high": 0.5, "steps": 3},
    "train.lr": {"low": 1e-4, "high": 1e-2, "log": True, "steps": 2},
    "train.ce": ["full", "in-batch"],
    "distill.temperature": [None, 0.1, 1],
}


def trial(number: int, metric: float | None, values: dict[str, Any]) -> Trial:
    return Trial(number, "diverged" if metric is None else "complete", values, metric, metric, 1, 2, 0.5)


def hill(values: dict[str, Any]) -> float:
    """Highest at a dropout of 0.3 and a learning rate of 1e-3."""
    dropout = values.get("student.hidden_dropout, student.attention_dropout", 0.5)
    return -((dropout - 0.3) ** 2) - math.log10(values.get("train.lr", 1e-2) / 1e-3) ** 2 / 10


def search(sampler: str, trials: int, seed: int = 1, evaluate: Callable[[dict[str, Any]], float] = hill) -> list[Trial]:
    space = make_space(SPACE, "distilled", "test")
    done: list[Trial] = []
    for number in range(trials):
        values = SAMPLERS[sampler](space, seed, number, done)
        done.append(trial(number, evaluate(values), values))
    return done


# --- spaces ----------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e4), st.booleans(), st.floats(0, 1, exclude_max=True))
@settings(max_examples=50, deadline=None)
def test_a_range_stays_within_its_bounds(low: float, factor: float, log: bool, share: float) -> None:
    domain = Range(low=low, high=low * factor, log=log, steps=4)
    drawn = domain.draw(share)
    assert isinstance(drawn, float)
    assert domain.low <= drawn <= domain.high
    middle = domain.at(0.5)
    assert middle == pytest.approx(math.sqrt(low * low * factor) if log else low * (1 + factor) / 2, rel=1e-3)
    points = domain.points()
    assert points is not None
    assert points[0] == pytest.approx(low, rel=1e-3)
    assert points == sorted(points)


def test_whole_numbers_are_equally_likely() -> None:
    domain = Range(low=1, high=4, int=True)
    drawn = [domain.draw(share / 400) for share in range(400)]
    assert {value: drawn.count(value) for value in (1, 2, 3, 4)} == {1: 100, 2: 100, 3: 100, 4: 100}
    assert all(type(value) is int for value in drawn)


def test_values_reach_every_key_and_are_parsed_by_the_configuration() -> None:
    space = make_space(SPACE, "distilled", "test")
    config = RunConfig.model_validate({"student": {"hidden_size": 8}, "train": {"epochs": 3}, "distill": {"lambda": 2}})
    values = {"student.hidden_dropout, student.attention_dropout": 0.2, "train.lr": 0.01, "distill.temperature": None}
    found = space.apply(config, values)
    assert found.student == {"hidden_size": 8, "hidden_dropout": 0.2, "attention_dropout": 0.2}
    assert (found.train.lr, found.train.epochs, found.distill.weight, found.distill.temperature) == (0.01, 3, 2, None)
    assert found.train.model_fields_set == {"lr", "epochs"}
    assert space.apply(config, {}) == config
    assert make_space(space.plain(), "distilled", "again") == space
    with pytest.raises(ConfigError, match=r"space: train\.lr=-1"):
        space.apply(config, {"train.lr": -1})


def test_numbers_that_yaml_reads_as_text() -> None:
    space = make_space(yaml.safe_load("train.lr: [1e-3, 1e-4]"), "base", "test")
    assert space.dimensions[0].domain == Choice(values=(0.001, 0.0001))


@pytest.mark.parametrize("student", STUDENTS.names())
@pytest.mark.parametrize("kind", ["base", "distilled"])
def test_the_default_space_fits_every_student(student: str, kind: Any) -> None:
    config = STUDENTS.get(student).Config
    space = make_space(default_space(kind, config), kind, "default")
    for dimension in space.dimensions:
        for value in dimension.domain.bounds():
            config.model_validate(space.apply(RunConfig(), {dimension.name: value}).student)
    names = {d.name for d in space.dimensions}
    assert ("distill.lambda" in names) == ("distill.temperature" in names) == (kind == "distilled")
    assert names >= {"train.lr", "train.weight_decay"}
    check_sampler("grid", space, 9)


def test_a_space_of_ones_own(tmp_path: Path) -> None:
    config = STUDENTS.get("sasrec").Config
    path = tmp_path / "space.yaml"
    path.write_text("train.lr: [0.1]\ndistill.lambda: {low: 1, high: 2}\n")
    both = [read_space(path, ["train.lr=[1e-3]"], kind, config, shared=True) for kind in ("base", "distilled")]
    assert [d.name for d in both[0].dimensions] == ["train.lr"]
    assert [d.name for d in both[1].dimensions] == ["train.lr", "distill.lambda"]
    assert both[0].dimensions[0].domain == Choice(values=(0.001,))
    only = read_space(None, ["train.lr=[0.1]"], "base", config)
    assert [d.name for d in only.dimensions] == ["train.lr"]
    words = read_space(None, ["distill.consistency=[instance, off]"], "distilled", config)
    assert words.dimensions[0].domain == Choice(values=("instance", "off"))
    with pytest.raises(ConfigError, match=r"--vary 'train\.lr=2024-13-45': '2024-13-45' is not valid YAML"):
        read_space(None, ["train.lr=2024-13-45"], "base", config)


@pytest.mark.parametrize(
    ("written", "kind", "message"),
    [
        ({}, "base", "nothing to search"),
        ({"plan.alpha": [1]}, "distilled", "plan.alpha would need stage one in every trial"),
        ({"distill.lambda": [1]}, "base", "a base model has no teachers"),
        ({"lr": [1]}, "base", "'lr' is no key to search"),
        ({"trains.lr": [1]}, "base", "Did you mean 'train'"),
        ({"train.lr, train.lr": [1]}, "base", "train.lr is named twice"),
        ({"train.lr": 0.1}, "base", "neither a list of values nor a range"),
        ({"train.lr": []}, "base", "values"),
        ({"train.lr": {"low": 1}}, "base", "high"),
        ({"train.lr": {"low": 2, "high": 1}}, "base", "low 2 must be below high 1"),
        ({"train.lr": {"low": 0, "high": 1, "log": True}}, "base", "low 0 has no logarithm"),
        ({"train.lr": {"low": 0.5, "high": 2, "int": True}}, "base", "must be whole numbers"),
        ({"train.lr": {"low": 1, "high": 2, "step": 3}}, "base", "unknown key 'step'. Did you mean 'steps'"),
    ],
)
def test_spaces_that_say_nothing_or_the_wrong_thing(written: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^test: ") as caught:
        make_space(written, kind, "test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_space(tmp_path: Path) -> None:
    config = STUDENTS.get("sasrec").Config
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        read_space(tmp_path / "absent.yaml", [], "base", config)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a mapping"):
        read_space(tmp_path / "list.yaml", [], "base", config)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not valid YAML"):
        read_space(tmp_path / "bad.yaml", [], "base", config)
    for vary in ("train.lr", "=[1]", "train.lr=[1"):
        with pytest.raises(ConfigError, match="--vary"):
            read_space(None, [vary], "base", config)


# --- samplers --------------------------------------------------------------------------------------------------------


def test_a_grid_visits_every_point_once() -> None:
    found = search("grid", 36)
    assert len({tuple(t.values.items()) for t in found}) == 36
    assert [t.values for t in found] != [t.values for t in search("grid", 36, seed=2)]
    check_sampler("grid", make_space(SPACE, "distilled", "test"), 36)
    with pytest.raises(ConfigError, match="the grid has 36 points, fewer than 37 trials"):
        check_sampler("grid", make_space(SPACE, "distilled", "test"), 37)
    with pytest.raises(ConfigError, match="a grid needs its steps"):
        check_sampler("grid", make_space({"train.lr": {"low": 1, "high": 2}}, "base", "test"), 2)
    with pytest.raises(ConfigError, match="Did you mean 'grid'"):
        check_sampler("gird", make_space(SPACE, "distilled", "test"), 2)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_depends_on_seed_number_and_the_trials_before(sampler: str) -> None:
    if sampler == "tpe":
        pytest.importorskip("optuna")
    found = search(sampler, STARTUP + 4)
    assert found[0].values == {}
    assert all(set(t.values) == set(SPACE) for t in found[1:])
    assert found == search(sampler, STARTUP + 4)
    assert found != search(sampler, STARTUP + 4, seed=2)
    space = make_space(SPACE, "distilled", "test")
    again = SAMPLERS[sampler](space, 1, STARTUP + 3, found[: STARTUP + 3])
    assert again == found[STARTUP + 3].values


def test_every_trial_tries_something_else() -> None:
    space = make_space({"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "base", "test")
    assert len({SAMPLERS["random"](space, 1, number, [])["train.lr"] for number in range(1, 20)}) == 19


def test_the_best_trial_is_that_of_the_best_ndcg() -> None:
    trials = [replace(trial(0, 0.1, {}), recall=0.9), replace(trial(1, 0.2, {}), recall=0.3), trial(2, None, {})]
    best = best_of(trials)
    assert best is not None
    assert best.number == 1


def test_tpe_learns_from_the_trials_before() -> None:
    pytest.importorskip("optuna")
    begun = search("tpe", 30)
    assert [t.values for t in begun[: STARTUP + 1]] == [t.values for t in search("random", STARTUP + 1)]
    late = [t.metric for t in begun[15:] if t.metric is not None]
    early = [t.metric for t in search("random", 30)[15:] if t.metric is not None]
    assert sum(late) / len(late) > sum(early) / len(early)
    opposite = search("tpe", 30, evaluate=lambda values: -hill(values))
    assert [t.values for t in opposite[STARTUP + 1 :]] != [t.values for t in begun[STARTUP + 1 :]]


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'ckd-mdsr\[tune\]'"):
        check_sampler("tpe", make_space(SPACE, "distilled", "test"), 3)


# --- trials ----------------------------------------------------------------------------------------------------------


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    done = [
        trial(0, 0.1, {}),
        trial(1, None, {"a": None, "b": 1, "c": "x", "d": True, "e": 1}),
        trial(2, 0.2, {"a": 0.5, "b": 2.5, "c": "y", "d": False, "e": 3}),
        trial(3, 0.2, {"a": "mixed", "b": 1, "c": "z", "d": True, "e": 3}),
    ]
    save_trials(done, ["a", "b", "c", "d", "e"], tmp_path / "trials.parquet")
    assert load_trials(tmp_path / "trials.parquet") == done
    table = pl.read_parquet(tmp_path / "trials.parquet")
    assert table["b"].to_list() == [None, 1.0, 2.5, 1.0]
    assert (table["d"].dtype, table["e"].dtype, table["a"].dtype) == (pl.Boolean, pl.Int64, pl.String)
    assert table["valid_ndcg@10"].to_list() == [0.1, None, 0.2, 0.2]
    assert best_of(done) == done[2]
    assert best_of(done[1:2]) is None
    assert Budget.of(done) == Budget(4, 8, 2.0)
    first = (tmp_path / "trials.parquet").read_bytes()
    save_trials(done, ["a", "b", "c", "d", "e"], tmp_path / "trials.parquet")
    assert (tmp_path / "trials.parquet").read_bytes() == first


def test_files_that_hold_no_trials(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    with pytest.raises(DataError, match="no trials here"):
        load_trials(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="damaged"):
        load_trials(path)
    pl.DataFrame({"number": [1]}).write_parquet(path)
    with pytest.raises(DataError, match="holds no trials"):
        load_trials(path)
