"""The numbers of the page's tables and curves: each of another value, so that none can stand in another's place."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ckd.pipelines.reproduce.result import (
    Difference,
    Experiment,
    Panel,
    Point,
    RunRecord,
    Series,
    Spread,
    Table,
)
from ckd.report import training
from ckd.report.figures import panel_data
from ckd.report.overview import domains_table, runs_table, searches_table
from ckd.report.page import Page, _duration, _trials_panel
from ckd.report.work import SEARCHED, DomainInfo, Run, SearchInfo, Work, read_work
from ckd.tune.trials import Budget, Trial


def a_run(name: str = "r", **changes: Any) -> Run:
    """Two epochs of a curriculum and two of all data."""
    rows = [
        {
            "epoch": epoch,
            "stage": stage,
            "loss": 4.0 - epoch,
            "ce": 3.0 - epoch / 2,
            "kd": 0.5 - epoch / 10,
            "seconds": 1.5 + epoch,
            "valid_ndcg@10": 0.1 + epoch / 100,
            "valid_recall@10": 0.2 + epoch / 100,
            "dropped_a": 0.25,
            "dropped_b": 0.75,
        }
        for epoch, stage in enumerate((1, 2, 0, 0))
    ]
    plain: dict[str, Any] = {
        "domain": "d",
        "name": name,
        "kind": "student",
        "model": "sasrec",
        "seed": 7,
        "identity": {**dict.fromkeys(SEARCHED), "teachers": {"a": {}, "b": {}}},
        "facts": {},
        "rows": rows,
        "best_epoch": 2,
        "finished": True,
        "valid": {"ndcg@10": 0.12, "recall@10": 0.22},
        "test": {"ndcg@10": 0.11, "recall@10": 0.21},
        "weights": None,
        "stamps": (),
        "versions": {},
    }
    return Run(**{**plain, **changes})


def a_search(**changes: Any) -> SearchInfo:
    trials = [
        Trial(0, "complete", {}, 0.1, 0.4, 1, 5, 2.0),
        Trial(1, "diverged", {"train.lr": 9}, None, None, None, 6, 3.0),
        Trial(2, "complete", {"train.lr": 1}, 0.3, 0.5, 2, 7, 4.0),
        Trial(3, "complete", {"train.lr": 2}, 0.2, 0.6, 2, 8, 5.0),
    ]
    identity = {"student": "sasrec", "kind": "base", "sampler": "random"}
    best = {"number": 2, "metric": 0.3, "values": {"train.lr": 1}, "run": dict.fromkeys(SEARCHED)}
    return replace(SearchInfo("d", "s", identity, trials, Budget.of(trials), best, {}), **changes)


def cells(table: Table, row: int = 0) -> dict[str, str]:
    return {column.name: table.text(row, at) for at, column in enumerate(table.columns)}


def shown(markup: str) -> list[dict[str, str]]:
    """The rows of a table of the page, by the names of its columns."""
    names = [unescape(name) for name in re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', markup)]
    rows = re.findall(r"<tr>(<th scope=\"row\".*?)</tr>", markup)
    return [
        dict(zip(names, re.findall(r"<t[hd][^>]*>(?:<a[^>]*>)?([^<]*)", unescape(row)), strict=True)) for row in rows
    ]


# --- tables over everything ------------------------------------------------------------------------------------------


def test_every_number_of_a_run_is_in_its_column() -> None:
    assert cells(runs_table([a_run()], [])) == {
        "Run": "r",
        "Domain": "d",
        "Model": "sasrec",
        "Kind": "student",
        "Seed": "7",
        "Teachers": "a, b",
        "Epochs": "4",
        "Best epoch": "2",
        "Valid N@10": "0.1200",
        "Test R@10": "0.2100",
        "Test N@10": "0.1100",
        "Training s": "12",
        "Settings from": "no search",
        "State": "finished",
    }


def test_settings_are_of_a_search_of_the_same_domain_and_of_students() -> None:
    runs = [a_run(), a_run(domain="e"), a_run(kind="teacher"), a_run(identity={"student": "other"})]
    table = runs_table(runs, [a_search()])
    assert [cells(table, row)["Settings from"] for row in range(4)] == [
        "search s: 4 trials, 26 epochs, 14 s",
        *["no search"] * 3,
    ]


def test_every_number_of_a_search_is_in_its_column() -> None:
    found = cells(searches_table([a_search()]))
    assert found == {
        "Search": "s",
        "Domain": "d",
        "Model": "sasrec",
        "Of": "base",
        "Sampler": "random",
        "Trials": "4",
        "Diverged": "1",
        "Epochs": "26",
        "Training s": "14",
        "Best trial": "2",
        "Valid N@10": "0.3000",
        "Best values": "train.lr = 1",
    }
    assert cells(searches_table([a_search(best=None)]))["Best trial"] == "–"


def test_every_number_of_a_domain_is_in_its_column() -> None:
    statistics = {"users": 11, "items": 22, "interactions": 1333, "average_length": 4.5, "sparsity": 0.75}
    found = cells(domains_table([DomainInfo("d", "f", statistics)]))
    assert [found[name] for name in ("#Users", "#Items", "#Inters.", "Sparsity")] == ["11", "22", "1,333", "75.00%"]
    assert found["Avg. n"].startswith("4.5")


# --- the page's own tables -------------------------------------------------------------------------------------------


def an_experiment(**changes: Any) -> Experiment:
    def record(seed: int, run: str) -> RunRecord:
        metrics, valid = {"ndcg@10": 0.11, "recall@10": 0.21}, {"ndcg@10": 0.12, "recall@10": 0.22}
        return RunRecord(
            "d", "M", "student", "sasrec", seed, run, f"students/d/{run}", (), {"plan.pool": 2}, metrics, valid, 9.0
        )

    difference = Difference("d", "ndcg@10", "M", "B", 0.3, 0.2, 0.5, 0.05, 0.15, 0.011, 0.022, 6)
    plain: dict[str, Any] = {
        "name": "table3",
        "title": "methods",
        "element": None,
        "domains": ("d",),
        "seeds": (7, 8),
        "example": False,
        "command": "ckd",
        "config": {},
        "runs": (record(7, "r"), record(8, "q")),
        "differences": (difference,),
    }
    return Experiment(**{**plain, **changes})


def test_every_number_of_a_paired_test_is_in_its_column() -> None:
    (found,) = shown(Page(Work())._differences(an_experiment()))
    assert found == {
        "Method": "M",
        "Against": "B",
        "Domain": "d",
        "Metric": "ndcg@10",
        "Value": "0.3000",
        "Other": "0.2000",
        "Improvement": "+50.00%",
        "95% low": "0.0500",
        "95% high": "0.1500",
        "p": "0.0110",
        "p, corrected": "0.0220",
        "Comparisons": "6",
    }


def test_every_number_of_an_experiments_run_is_in_its_column() -> None:
    found, _ = shown(Page(Work(runs=[a_run()]))._records(an_experiment()))
    assert found == {
        "Run": "r",
        "Method": "M",
        "Domain": "d",
        "Seed": "7",
        "Valid N@10": "0.1200",
        "Test R@10": "0.2100",
        "Test N@10": "0.1100",
        "Training s": "9",
        "Changes": "plan.pool = 2",
        "Settings from": "no search",
    }


def test_curves_side_by_side_are_of_the_first_seed() -> None:
    runs = [a_run("r"), a_run("q", seed=8)]
    (panel,) = Page(Work(runs=runs))._curves(an_experiment())
    assert [series.name for series in panel.series] == ["M"]
    assert [(p.x, p.y.mean) for p in panel.series[0].points] == [(n, pytest.approx(0.1 + n / 100)) for n in range(4)]
    assert panel.title.endswith("seed 7")


@pytest.mark.parametrize(("seconds", "text"), [(119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_a_search_is_drawn_trial_by_trial_with_the_best_so_far() -> None:
    panel = _trials_panel(a_search())
    assert panel is not None
    points = {series.name: [(p.x, p.y.mean) for p in series.points] for series in panel.series}
    assert points == {
        "each trial": [(0.0, 0.1), (2.0, 0.3), (3.0, 0.2)],
        "best so far": [(0.0, 0.1), (2.0, 0.3), (3.0, 0.3)],
    }


# --- curves of one run -----------------------------------------------------------------------------------------------


def test_curves_of_a_run_are_its_log() -> None:
    run = a_run()
    panels = [*training._losses(run), *training._validation(run), *training._dropped(run)]
    found = {
        (panel.title.split()[0], series.name): [(p.x, p.y.mean) for p in series.points]
        for panel in panels
        for series in panel.series
    }
    keys = {
        ("Loss", "loss"): "loss",
        ("Loss", "cross-entropy"): "ce",
        ("KL", "KL"): "kd",
        ("Validation", "NDCG@10"): "valid_ndcg@10",
        ("Validation", "Recall@10"): "valid_recall@10",
        ("Which", "a"): "dropped_a",
        ("Which", "b"): "dropped_b",
    }
    assert found == {drawn: [(row["epoch"], row[key]) for row in run.rows] for drawn, key in keys.items()}
    # Between the curriculum's last epoch and the first of all data; and where the best is.
    assert [(mark.x, mark.text) for mark in training._marks(run)] == [(1.5, "full data"), (2.0, "best")]


def test_what_says_nothing_is_not_drawn() -> None:
    rows = [{**row, "loss": row["ce"], "dropped_a": 0.0, "dropped_b": 0.0} for row in a_run().rows]
    run = a_run(rows=rows)
    assert [series.name for series in training._losses(run)[0].series] == ["cross-entropy"]
    assert training._dropped(run) == []


def test_many_runs_are_shared_out_evenly() -> None:
    panels = training.side_by_side([(f"m{n}", a_run()) for n in range(8)], "d", 7)
    assert [[series.name for series in panel.series] for panel in panels] == [
        ["m0", "m1", "m2", "m3"],
        ["m4", "m5", "m6", "m7"],
    ]


def test_the_data_of_a_panel_keep_the_mean_its_deviation_and_every_run() -> None:
    ours = Series("ours", (Point(1.0, Spread.of([0.1, 0.3])), Point(2.0, Spread.of([0.5]))))
    theirs = Series("theirs", (Point(1.0, Spread.of([0.4])),), paper=True)
    panel = Panel("P", "d", "lines", "x", "y", (ours, theirs), reference=("base", Spread.of([0.5, 0.7])))
    headers, rows = panel_data(panel)
    found = [dict(zip(headers, row, strict=True)) for row in rows]
    std = pytest.approx(0.1 * 2**0.5)
    plain = {"run 1": None, "run 2": None, "source": "measured"}
    assert found == [
        {**plain, "series": "ours", "x": 1.0, "y": pytest.approx(0.2), "std": std, "run 1": 0.1, "run 2": 0.3},
        {**plain, "series": "ours", "x": 2.0, "y": 0.5, "std": None, "run 1": 0.5},
        {**plain, "series": "theirs", "x": 1.0, "y": 0.4, "std": None, "run 1": 0.4, "source": "the paper"},
        {**plain, "series": "base", "x": None, "y": pytest.approx(0.6), "std": std, "source": "reference"},
    ]


# --- what is read of a folder ----------------------------------------------------------------------------------------


def test_a_teachers_best_epoch_is_that_of_its_best_validation(tmp_path: Path) -> None:
    folder = tmp_path / "teachers" / "d" / "t"
    folder.mkdir(parents=True)
    metrics = {"valid": {"ndcg@10": 0.3}, "test": {"ndcg@10": 0.2}}
    identity = {"teacher": "unisrec", "seed": 5, "domain": "f"}
    (folder / "result.json").write_text(json.dumps({"identity": identity, "metrics": metrics, "versions": {}}))
    (folder / "log.csv").write_text("epoch,loss,valid_ndcg@10\n0,2.5,0.1\n1,2,0.3\n2,1,0.2\n3,0.5,\n")
    (run,) = read_work(tmp_path).runs
    assert (run.best_epoch, run.seed, run.model, run.finished) == (1, 5, "unisrec", True)
    assert (run.valid, run.test) == (metrics["valid"], metrics["test"])
    assert run.rows[3] == {"epoch": 3, "loss": 0.5}
    assert [type(row["epoch"]) for row in run.rows] == [int] * 4


def test_a_student_is_what_it_was_trained_as(tmp_path: Path) -> None:
    described = {"identity": {"student": "sasrec", "baseline": "hetcomp", "seed": 5}, "versions": {}}
    for name, finished in (("done", True), ("begun", False)):
        folder = tmp_path / "students" / "d" / name
        folder.mkdir(parents=True)
        (folder / "student.json").write_text(json.dumps(described))
        (folder / "last.json").write_text(json.dumps({"rows": [], "finished": finished}))
    begun, done = read_work(tmp_path).runs
    assert (begun.model, begun.finished, done.finished) == ("hetcomp", False, True)


def test_experiments_stand_in_the_papers_order(tmp_path: Path) -> None:
    names = ("table3", "table10", "figure1", "figure3", "cold-start", "open-questions")
    for name in reversed(names):
        an_experiment(name=name).save(tmp_path)
    assert [each.name for each in read_work(tmp_path).experiments] == list(names)
