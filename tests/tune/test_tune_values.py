"""The values that a search comes to: points of a grid, draws, and what TPE is told and asked."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import RunConfig
from ckd.errors import ConfigError
from ckd.students import STUDENTS
from ckd.tune import samplers
from ckd.tune.samplers import SAMPLERS, STARTUP
from ckd.tune.space import Choice, Dimension, Range, Space, default_space, make_space
from ckd.tune.trials import Budget, Trial, load_trials, save_trials

SPACE = make_space(
    {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True, "steps": 3},
        "train.batch_size": {"low": 8, "high": 512, "log": True, "int": True},
        "student.dropout": {"low": 0.1, "high": 0.5},
        "student.n_layers": {"low": 1, "high": 4, "int": True},
        "train.ce": ["full", "in-batch"],
    },
    "base",
    "test",
)


def trials(number: int, sign: int = 1) -> list[Trial]:
    """Random ones, the better the lower (or higher) the learning rate."""
    found = []
    for n in range(1, number + 1):
        values = SAMPLERS["random"](SPACE, 3, n, [])
        metric = -sign * math.log10(float(values["train.lr"] or 1))
        found.append(Trial(n, "complete", values, metric, metric, 0, 1, 1.0))
    return found


# --- ranges and choices ----------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e3), st.floats(1.5, 1e3), st.integers(2, 9), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_grid_takes_both_ends_and_goes_in_equal_steps(low: float, factor: float, steps: int, log: bool) -> None:
    points = Range(low=low, high=low * factor, log=log, steps=steps).points()
    assert points is not None
    assert len(points) == steps
    share = [step / (steps - 1) for step in range(steps)]
    expected = [low * factor**s if log else low + s * (low * factor - low) for s in share]
    assert points == pytest.approx(expected, rel=1e-3)


def test_whole_numbers_are_the_nearest_and_each_comes_once() -> None:
    assert Range(low=1, high=2, int=True, steps=5).points() == [1, 2]
    assert Range(low=1, high=10, int=True, steps=4).points() == [1, 4, 7, 10]
    assert Range(low=0, high=3, int=True, steps=3).points() == [0, 2, 3]
    assert [Range(low=0, high=9, int=True).tidy(value) for value in (2.4, 2.6, -1.0, 12.0)] == [2, 3, 0, 9]


def test_whole_numbers_on_a_logarithmic_scale_are_drawn_on_it() -> None:
    domain = Range(low=1, high=10_000, int=True, log=True)
    assert [domain.draw(share) for share in (0.0, 0.25, 0.5, 0.75)] == [1, 10, 100, 1000]


def test_choices_are_equally_likely() -> None:
    domain = Choice(values=("a", 2, None))
    drawn = [domain.draw(share / 300) for share in range(300)]
    assert [drawn.count(value) for value in domain.values] == [100, 100, 100]


def test_bounds_are_both_ends() -> None:
    assert Range(low=0.5, high=8).bounds() == [0.5, 8]
    assert Choice(values=(3, 1, 2)).bounds() == [3, 1, 2]


def test_a_range_of_one_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"low 1 must be below high 1"):
        make_space({"train.lr": {"low": 1, "high": 1}}, "base", "test")


# --- samplers --------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_of_its_points() -> None:
    space = make_space({"train.lr": [1, 2, 3], "train.ce": ["full", "in-batch"]}, "base", "test")
    found = [SAMPLERS["grid"](space, 1, number, []) for number in range(6)]
    assert {(each["train.lr"], each["train.ce"]) for each in found} == {*itertools.product((1, 2, 3), space_ce(space))}


def space_ce(space: Space) -> list[Any]:
    return space.dimensions[1].domain.points() or []


def test_neighbouring_seeds_share_no_trial() -> None:
    found = [SAMPLERS["random"](SPACE, seed, number, [])["train.lr"] for seed in range(5) for number in range(1, 6)]
    assert len(set(found)) == 25


def test_tpe_learns_from_the_first_trial_after_the_random_ones() -> None:
    pytest.importorskip("optuna")
    one, other = (SAMPLERS["tpe"](SPACE, 3, 9, trials(STARTUP, sign)) for sign in (1, -1))
    assert one != other
    # Those without a metric, and the configuration as it is, tell nothing.
    silent = [
        Trial(7, "diverged", trials(7)[6].values, None, None, None, 1, 1.0),
        Trial(0, "complete", {}, 9, 9, 0, 1, 1),
    ]
    assert SAMPLERS["tpe"](SPACE, 3, 9, [*trials(STARTUP), *silent]) == one
    few = trials(STARTUP - 1)
    assert SAMPLERS["tpe"](SPACE, 3, 9, [*few, *silent]) == SAMPLERS["random"](SPACE, 3, 9, [])
    assert SAMPLERS["tpe"](SPACE, 3, 10, trials(STARTUP)) != one


def test_tpe_asks_for_what_a_person_would_write() -> None:
    pytest.importorskip("optuna")
    for number in range(9, 14):
        values = SAMPLERS["tpe"](SPACE, 3, number, trials(9))
        assert list(values) == [dimension.name for dimension in SPACE.dimensions]
        for name in ("train.lr", "student.dropout"):
            assert values[name] == float(f"{values[name]:.4g}")
        assert type(values["train.batch_size"]) is type(values["student.n_layers"]) is int
        assert values["train.ce"] in ("full", "in-batch")


def test_tpe_is_told_the_scale_of_each_range() -> None:
    optuna = pytest.importorskip("optuna")
    found = {each.name: samplers._distribution(optuna, each) for each in SPACE.dimensions}
    assert {name: (each.low, each.high, each.log) for name, each in found.items() if name != "train.ce"} == {
        each.name: (each.domain.low, each.domain.high, each.domain.log)
        for each in SPACE.dimensions
        if isinstance(each.domain, Range)
    }
    assert list(found["train.ce"].choices) == [0, 1]


def test_choices_that_are_equal_and_of_other_kinds_are_told_apart() -> None:
    values = (1, True, 1.0, 0, False, None, "1")
    dimension = Dimension("x", ("x",), Choice(values=values))
    assert [samplers._index_of(dimension, value) for value in values] == list(range(len(values)))


# --- what is searched, and what is kept ------------------------------------------------------------------------------


def test_a_searched_value_takes_the_place_of_the_configured_one() -> None:
    config = RunConfig.model_validate({"train": {"lr": 0.5, "epochs": 3}})
    found = SPACE.apply(config, {"train.lr": 0.25})
    assert (found.train.lr, found.train.epochs) == (0.25, 3)


@pytest.mark.parametrize("key", ["train.lr.more", "train.", "train", ".lr"])
def test_a_key_is_one_of_a_section(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^test: '{re.escape(key)}' is no key to search"):
        make_space({key: [1]}, "base", "test")


def test_a_grid_of_one_step_is_none() -> None:
    with pytest.raises(ConfigError, match="steps"):
        make_space({"train.lr": {"low": 1, "high": 2, "steps": 1}}, "base", "test")


def test_what_is_searched_by_default_is_searched_in_orders_of_magnitude_but_for_dropout() -> None:
    space = make_space(default_space("distilled", STUDENTS.get("sasrec").Config), "distilled", "test")
    for dimension in space.dimensions:
        low, middle, high = (float(point) for point in dimension.domain.points() or [])
        even = (low + high) / 2 if "dropout" in dimension.name else math.sqrt(low * high)
        assert middle == pytest.approx(even, rel=1e-3)


def test_trials_are_kept_with_all_they_measured_and_come_back_by_number(tmp_path: Path) -> None:
    done = [Trial(n, "complete", {"x": n}, 0.1 * n, 0.7 - 0.1 * n, n + 1, n + 3, 0.125 * n) for n in range(3)]
    save_trials(done[::-1], ["x"], tmp_path / "trials.parquet")
    assert load_trials(tmp_path / "trials.parquet") == done
    table = pl.read_parquet(tmp_path / "trials.parquet").sort("number")
    assert table["valid_ndcg@10"].to_list() == [trial.metric for trial in done]
    assert table["valid_recall@10"].to_list() == [trial.recall for trial in done]
    assert Budget.of(done) == Budget(3, 3 + 4 + 5, 0.375)


def test_columns_of_whole_numbers_stay_whole_and_a_gap_stays_one(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [{"n": 1, "mixed": "a"}, {"n": None, "mixed": None}, {"n": 3, "mixed": 2}]
    done = [Trial(at, "complete", each, 0.1, 0.2, 0, 1, 1.0) for at, each in enumerate(values)]
    save_trials(done, ["n", "mixed"], tmp_path / "trials.parquet")
    table = pl.read_parquet(tmp_path / "trials.parquet")
    assert table["n"].dtype == pl.Int64
    assert (table["n"].to_list(), table["mixed"].to_list()) == ([1, None, 3], ["a", None, "2"])
