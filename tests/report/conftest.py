"""A work folder with everything that a report shows, made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.reproduce.result import (
    Column,
    Difference,
    Experiment,
    Panel,
    Point,
    RunRecord,
    Series,
    Spread,
    Table,
)
from ckd.pipelines.train_student import train_student
from ckd.pipelines.tune import Request, tune

#: What every markup language reads as its own.
NASTY = "<script>alert('x')</script> & \"50%\" _a_ *b* | $c$ #d {e} \\f ~^ [g] =H1 \x07 λ²"


class Reported(NamedTuple):
    work: Path
    domain: str
    stamp: str


def experiment(domain: str, run: str) -> Experiment:
    """A result with every kind of table cell and panel."""
    folder = f"students/{domain}/{run}"
    record = RunRecord(
        domain, "CKD-MDSR", "student", "sasrec", 3, run, folder, ("unisrec-0",), {}, {"ndcg@10": 0.1}, {}, None
    )
    columns = (Column("Method"), Column("N@10", "metric"), Column("N@10", "metric", True), Column(NASTY, "change"))
    rows = (("SASRec", Spread.of([0.1, 0.2]), 0.15, None), (NASTY, Spread.of([0.125]), None, 0.25))
    ours = Series("ours", tuple(Point(x, Spread.of([x, x + 0.1]), size=x, label=NASTY) for x in (0.1, 1.0, 10.0)))
    paper = Series("theirs", tuple(Point(x, Spread.of([x])) for x in (0.1, 1.0)), paper=True)
    bars = tuple(Series(f"s{n}", (Point(NASTY, Spread.of([0.5])), Point("b", Spread.of([-0.5 * n])))) for n in (1, 2))
    panels = (
        Panel(NASTY, domain, "lines", "tau", "N@10", (ours, paper), log_x=True, reference=("base", Spread.of([0.3]))),
        Panel("bars", domain, "bars", "method", "N@10", bars, reference=("base", Spread.of([0.3]))),
        Panel("bubbles", domain, "bubbles", "ms", "N@10", (ours,), size_label="MB"),
        Panel("names", domain, "lines", "kind", "N@10", (Series("one", (Point("x", Spread.of([1.0])),)),)),
        Panel("nothing", domain, "lines", "x", "y", ()),
    )
    difference = Difference(domain, "ndcg@10", "CKD-MDSR", "SASRec", 0.2, 0.1, 1.0, 0.05, 0.15, 1e-9, 1e-8, 6)
    return Experiment(
        name="table3",
        title="methods",
        element="Tables 3 and 4",
        domains=(domain,),
        seeds=(3,),
        example=True,
        command="ckd reproduce table3",
        config={"train": {"lr": 0.001}},
        runs=(record,),
        differences=(difference,),
        tables=(Table(f"{domain}: {NASTY}", columns, rows, domain, (NASTY,)),),
        panels=panels,
        notes=(NASTY,),
        versions={"cpu": NASTY},
        seconds=7300.0,
    )


@pytest.fixture(scope="session")
def finished_report(finished_studio: Any, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """Base and distilled runs, evaluated; a search; an experiment; a run under an override. Nobody may change it."""
    work = tmp_path_factory.mktemp("report") / "work"
    shutil.copytree(finished_studio.work, work)
    domain, config = finished_studio.domain.name, finished_studio.config
    distil = config.distill.model_copy(update={"epsilon": 0.0})
    distilled = config.model_copy(update={"distill": distil})
    train_student(work, domain, "sasrec", distilled, teachers=finished_studio.teachers, run="ckd-seed3")
    train_student(work, domain, "sasrec", config, run="sasrec-seed3")
    for run in ("ckd-seed3", "sasrec-seed3"):
        evaluate(work, domain, run)
    vary = ("train.lr=[0.001, 0.01]",)
    tune(work, domain, config, Request("sasrec", ("base",), 1, vary=vary, plan=finished_studio.plan))
    shutil.copytree(work / "students" / domain / "ckd-seed3", work / "students" / domain / "wrong")
    path = work / "students" / domain / "wrong" / "best.json"
    best = json.loads(path.read_text())
    best["identity"]["mismatches"] = {"unisrec-1": f"made for {NASTY}"}
    path.write_text(json.dumps(best))
    experiment(domain, "wrong").save(work)
    return Reported(work, domain, "trained on scores of unisrec-1 that were made for")


@pytest.fixture
def reported(finished_report: Reported, tmp_path: Path) -> Reported:
    """A copy, for one test."""
    shutil.copytree(finished_report.work, tmp_path / "work")
    return finished_report._replace(work=tmp_path / "work")
