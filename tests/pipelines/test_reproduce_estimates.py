"""What `ckd reproduce` says of steps that are still to be done: their state, and how long they will take."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ckd.config import RunConfig
from ckd.data.atomic import write_json
from ckd.data.domain import Domain
from ckd.pipelines.reproduce.example_sizes import EXAMPLE_INSTANCES, EXAMPLE_SECONDS
from ckd.pipelines.reproduce.methods import BASE_METHOD
from ckd.pipelines.reproduce.steps import Costs, Estimates, Step, finished_in
from ckd.pipelines.reproduce.study import _validation, make_study


def a_step(key: str, model: str = "sasrec", domain: str = "d", state: str = "to do", run: Any = lambda: None) -> Step:
    return Step(key, f"train {key}", "train", model, domain, lambda: state, run)  # type: ignore[arg-type,return-value]


def test_estimates_say_where_they_come_from(tmp_path: Path) -> None:
    costs = Costs(tmp_path)
    folder = tmp_path / "experiments" / "costs"
    folder.mkdir(parents=True)
    for key, domain, seconds in (("a", "d", 10.0), ("b", "d", 20.0), ("c", "e", 100.0)):
        cost = {
            "key": key,
            "action": "train",
            "model": "sasrec",
            "domain": domain,
            "seconds": seconds,
            "finished": True,
        }
        (folder / f"{key}.json").write_text(json.dumps(cost))
    (folder / "half.json").write_text("{")
    distilled = {"action": "train", "model": "sasrec-ckd", "domain": "d", "finished": True}
    (folder / "k.json").write_text(json.dumps({"key": "k", "seconds": 70.0, **distilled}))
    sizes = {"d": 1_000, "e": 1_000, "f": 3_000}
    estimates = Estimates(costs, sizes.get)
    steps = [
        a_step("new"),
        a_step("a", state="begun"),
        a_step("done", state="done"),
        a_step("far", domain="f"),
        a_step("other", model="fm", domain="f"),
        a_step("nowhere", model="fm", domain="g"),
        a_step("distilled", model="sasrec-ckd"),
        a_step("another", model="fm-ckd", domain="f"),
    ]
    found = {step.what.removeprefix("train "): step for step in estimates.of(steps)}
    assert (found["new"].seconds, found["new"].source) == (15.0, "measured")
    assert (found["a"].seconds, found["a"].state) == (5.0, "begun")
    assert (found["done"].seconds, found["done"].state) == (0.0, "done")
    assert (found["far"].seconds, found["far"].source) == (pytest.approx(130.0), "scaled")
    assert found["other"].source == "assumed"
    assert found["other"].seconds is not None
    assert (found["nowhere"].seconds, found["nowhere"].source) == (None, "unknown")
    assert (found["distilled"].seconds, found["distilled"].source) == (70.0, "measured")
    assert (found["another"].seconds, found["another"].source) == (found["other"].seconds, "assumed")


def test_pretraining_takes_as_long_as_all_its_domains_for_all_its_epochs(tmp_path: Path) -> None:
    def seconds(domains: str, epochs: int) -> Any:
        step = Step("p", "pre-train", "pretrain", "unisrec", domains, lambda: "to do", lambda: None, epochs)
        return Estimates(Costs(tmp_path), {"d": 1_000, "e": 500}.get).of([step])[0].seconds

    assert seconds("d,e", 20) == pytest.approx(1.5 * seconds("d", 20)) == pytest.approx(2 * seconds("d,e", 10))
    assert seconds("d,unknown", 20) is None
    step = a_step("both", domain="d,e")
    Costs(tmp_path).carry_out(step)
    found = [Estimates(Costs(tmp_path), lambda _: 9).of([a_step("x", domain=d)])[0].source for d in ("d,e", "d")]
    assert found == ["measured", "scaled"]


def test_estimates_of_the_example_are_of_the_sizes_it_is_cut_to(tmp_path: Path) -> None:
    steps = [a_step("base"), a_step("large", model="recguru"), a_step("own", model="no-such-model")]
    real, cut, half = (
        [step.seconds or 0.0 for step in Estimates(Costs(tmp_path), {"d": size}.get, example).of(steps)]
        for size, example in ((10_000, False), (10_000, True), (5_000, True))
    )
    assert real[1] > 1_000 > 60 > cut[1]
    assert cut[0] < real[0]
    assert cut[2] == real[2]
    assert half == [pytest.approx(seconds / 2) for seconds in cut]


def test_an_estimate_is_of_the_instances_that_training_has(tiny: dict[str, Domain], tmp_path: Path) -> None:
    """Of a prepared domain those it has, whichever domain it is; of another the example's, or nobody knows."""
    (tmp_path / "data" / "shop").mkdir(parents=True)
    example, real = (make_study(tmp_path, data, None, 1, RunConfig()) for data in (None, tmp_path / "data"))
    domain = next(iter(tiny.values()))
    assert (example.instances(domain.name), real.instances("shop")) == (EXAMPLE_INSTANCES, None)
    for name in (domain.name, "shop"):
        replace(domain, name=name).save(tmp_path / "domains" / name)
    assert domain.instances("train").lengths.min() >= 1
    assert example.instances(domain.name) == real.instances("shop") == len(domain.instances("train"))


def test_estimates_of_a_study_are_of_the_sizes_it_trains(tmp_path: Path) -> None:
    study = make_study(tmp_path, None, None, 1, RunConfig())
    (step,) = [each for each in study.steps([BASE_METHOD]) if each.action == "train"]
    (planned,) = [each for each in study.dry_run([BASE_METHOD]) if each.what == step.what]
    assert planned.seconds == EXAMPLE_SECONDS["sasrec"]


def test_students_take_the_seeds_of_teachers_in_turn(tmp_path: Path) -> None:
    study = make_study(tmp_path, None, None, 5, RunConfig(seed=10), teacher_seeds=2)
    assert [study.teacher_seed(seed) for seed in study.seeds] == [10, 11, 10, 11, 10]
    whole = make_study(tmp_path, None, None, 3, RunConfig(seed=10), teacher_seeds=3)
    assert [whole.teacher_seed(seed) for seed in whole.seeds] == [10, 11, 12]


def test_sources_are_no_targets_and_are_told_of_where_they_matter(tmp_path: Path) -> None:
    for name in ("shop", "store"):
        (tmp_path / "data" / name).mkdir(parents=True)
    study, blind = (
        make_study(tmp_path, tmp_path / "data", None, 1, RunConfig(), sources=["store"], teachers=teachers)
        for teachers in (["unisrec"], ["unim2rec"])
    )
    assert (study.domains, study.notes, blind.left_out) == (("shop",), (), {})
    assert blind.notes == ("UniM²Rec is pre-trained on texts alone: store without pictures.",)


def test_what_is_not_done_is_announced(tmp_path: Path) -> None:
    said: list[str] = []
    study = make_study(tmp_path, None, None, 1, RunConfig(), say=said.append)
    study._carry_out([a_step("new"), a_step("half", state="begun"), a_step("old", state="done")])
    assert said == ["train new", "train half"]


def test_validation_is_that_of_the_best_epochs_log_or_of_a_teachers_result(tmp_path: Path) -> None:
    write_json(tmp_path / "best.json", {"log": {"epoch": 3, "loss": 0.5, "valid_ndcg@10": 0.25}})
    assert _validation(tmp_path) == {"ndcg@10": 0.25}
    write_json(tmp_path / "result.json", {"metrics": {"valid": {"ndcg@10": 0.5}, "test": {"ndcg@10": 0.1}}})
    assert _validation(tmp_path) == {"ndcg@10": 0.5}


def test_time_of_several_sessions_adds_up(tmp_path: Path) -> None:
    costs = Costs(tmp_path)

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        costs.carry_out(a_step("students/d/r", run=fail))
    first = costs.of("students/d/r")
    assert first is not None
    assert not first.finished
    assert costs.all() == []
    costs.carry_out(a_step("students/d/r", state="begun"))
    (second,) = costs.all()
    assert second.finished
    assert second.seconds >= first.seconds
    ran: list[int] = []
    costs.carry_out(a_step("students/d/r", state="done", run=lambda: ran.append(1)))
    assert (ran, costs.all()) == ([1], [second])
    # A run that was finished and discarded is no session of the one that takes its place.
    write_json(tmp_path / "experiments" / "costs" / "students__d__r.json", {**asdict(second), "seconds": 1000.0})
    costs.carry_out(a_step("students/d/r"))
    assert costs.all()[0].seconds < 100


def test_states_of_a_run(tmp_path: Path) -> None:
    state = finished_in(tmp_path / "r", "last.json", "finished")
    assert state() == "to do"
    (tmp_path / "r").mkdir()
    assert state() == "begun"
    for text, expected in (("{", "begun"), ('{"finished": false}', "begun"), ('{"finished": true}', "done")):
        (tmp_path / "r" / "last.json").write_text(text)
        assert state() == expected
